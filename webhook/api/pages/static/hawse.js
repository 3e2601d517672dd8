// Live updates: an event says that something is different, and the page is fetched again. Whoever is typing, has
// chosen something or has unfolded something is not disturbed; without JavaScript the page is what it was when loaded.
"use strict";
(() => {
  let waiting = false;
  const busy = () => {
    const main = document.querySelector("main");
    const focus = document.activeElement;
    return main.querySelector("input:checked, details[open]") !== null
      || (focus !== null && main.contains(focus) && focus.matches("input, select, button, summary"))
      || String(document.getSelection()) !== "";
  };
  const refresh = async () => {
    if (waiting) return;
    if (busy()) { waiting = true; setTimeout(() => { waiting = false; refresh(); }, 2000); return; }
    waiting = true;
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
      if (answer.ok && !busy()) {
        const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("main");
        const old = document.querySelector("main");
        const at = document.activeElement instanceof HTMLAnchorElement ? document.activeElement.getAttribute("href") : null;
        if (fresh !== null && fresh.innerHTML !== old.innerHTML) {
          old.replaceWith(fresh);
          if (at !== null) fresh.querySelector(`a[href="${CSS.escape(at)}"]`)?.focus();
        }
      }
    } catch { /* the API is away: the stream says when it is back */ } finally { waiting = false; }
  };
  const path = "/api/v1/events";
  const name = new URLSearchParams(location.search).get("namespace")
    ?? (location.pathname.match(/^\/namespaces\/([^/]+)$/)?.[1] ?? "");
  new EventSource(name ? `${path}?namespace=${encodeURIComponent(decodeURIComponent(name))}` : path)
    .addEventListener("change", refresh);
})();

// Live updates: an event says that something is different, and the page is fetched again. Whoever is typing, has
// chosen something or has unfolded something is not disturbed; without JavaScript the page is what it was when loaded.
"use strict";
(() => {
  const REST = 1000; // between two updates, however fast things change
  const SOON = 6000; // a stream ends now and then, and is back within this
  const LOOK = 20000; // between two looks at all nodes
  const after = (time) => new Promise((resolve) => setTimeout(resolve, time));
  const get = async (url) => {
    const answer = await fetch(url, { headers: { Accept: "text/html" } });
    return answer.ok ? new DOMParser().parseFromString(await answer.text(), "text/html") : null;
  };
  const busy = () => {
    const main = document.querySelector("main");
    const focus = document.activeElement;
    return main.querySelector("input:checked:not(form[method=get] *), details[open]") !== null
      || (focus !== null && main.contains(focus) && focus.matches("input, select, button, summary"))
      || String(document.getSelection()) !== "";
  };
  // The same element in a fresh page: a link by where it leads, a table's frame by its name.
  const twin = (fresh, focus) => {
    if (focus instanceof HTMLAnchorElement) return fresh.querySelector(`a[href="${CSS.escape(focus.getAttribute("href"))}"]`);
    const name = focus?.getAttribute("aria-label");
    return name ? fresh.querySelector(`[tabindex][aria-label="${CSS.escape(name)}"]`) : null;
  };

  let running = false;
  let again = false;
  const refresh = async () => {
    if (running) { again = true; return; }
    running = true;
    do {
      again = false;
      while (busy()) await after(2000);
      try {
        const page = await get(location.href);
        if (page !== null && !busy()) put(page.querySelector("main"));
      } catch { /* the API is away: the stream says when it is back */ }
      await after(REST);
    } while (again);
    running = false;
  };
  const put = (fresh) => {
    const old = document.querySelector("main");
    const path = old.querySelector("#path");
    if (path !== null) fresh.querySelector("#path")?.replaceWith(path.cloneNode(true));
    if (fresh.innerHTML === old.innerHTML) return;
    const focus = old.contains(document.activeElement) ? document.activeElement : null;
    old.replaceWith(fresh);
    if (focus !== null) twin(fresh, focus)?.focus();
    look();
  };

  // One assignment's page shows the path of its packets: every node is looked at, and not for each change.
  let looked = -Infinity;
  const look = async () => {
    const from = document.querySelector("#path")?.dataset.look;
    if (from === undefined || document.hidden || performance.now() - looked < LOOK) return;
    looked = performance.now();
    try {
      const way = (await get(from))?.querySelector("#way");
      const place = document.querySelector("#path");
      if (!way || place === null || place.querySelector("details[open]") !== null) return;
      place.querySelector("#way")?.remove();
      place.append(way);
      place.querySelector("[data-again]").textContent = "Have every node looked at again";
    } catch { /* as above */ }
  };
  document.addEventListener("click", (event) => {
    if (event.target instanceof Element && event.target.closest("#path [data-again]") && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      looked = -Infinity;
      look();
    }
  });

  const name = new URLSearchParams(location.search).get("namespace")
    ?? (location.pathname.match(/^\/namespaces\/([^/]+)$/)?.[1] ?? "");
  const stream = "/api/v1/events" + (name ? `?namespace=${encodeURIComponent(decodeURIComponent(name))}` : "");
  let lost;
  const still = (is) => { document.getElementById("still").hidden = !is; };
  const listen = () => {
    const source = new EventSource(stream);
    source.addEventListener("open", () => { clearTimeout(lost); lost = undefined; still(false); });
    source.addEventListener("change", refresh);
    source.addEventListener("error", () => {
      lost ??= setTimeout(() => still(true), SOON);
      // Whoever answers with an error (a proxy whose server restarts, a server that has too many listeners) is not
      // asked again by the browser.
      if (source.readyState === EventSource.CLOSED) setTimeout(listen, 2000 + Math.random() * 3000);
    });
  };
  listen();
  look();
})();

"""Whether a server of ours answers on its own port, as others would ask it."""

from __future__ import annotations

import http.client
import ssl

SECONDS = 2.0
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what to dial where somebody listens everywhere


def reachable(host: str, port: int, what: str = "admission", *, tls: bool = True) -> str | None:
    """Why nothing answers on `host`:`port`, or None. The certificate is not looked at: that is the caller's affair."""
    where = _EVERYWHERE.get(host, host)
    if tls:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            where, port, timeout=SECONDS, context=context
        )
    else:
        connection = http.client.HTTPConnection(where, port, timeout=SECONDS)
    try:
        connection.request("GET", "/healthz")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"{what} does not answer on port {port}: {error}"
    finally:
        connection.close()
    return None if status == http.client.OK else f"{what} answers {status} on port {port}"

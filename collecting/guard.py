"""What keeps other sites away from the page, and scripts out of it."""

import ipaddress
import socket
from collections.abc import Awaitable, Callable, Collection
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_HEADERS = {
    # Scripts and styles are files of ours; nothing in a text can load or run anything, and the
    # browser itself refuses to turn a text into HTML (Trusted Types).
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def make_guard(allowed_hosts: Collection[str]) -> Any:
    """Make what keeps other sites out, and gives every answer its headers.

    A site that the annotator has open elsewhere can send requests here, but not in our name: they
    carry its Origin. Nor under our name: who has a name of theirs point to this machine (DNS
    rebinding) is known by the Host, which is then neither a number nor a name of ours.
    """
    names = {"localhost", socket.gethostname().lower(), *(name.lower() for name in allowed_hosts)}

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        response: web.StreamResponse
        if problem := find_intrusion(request, names):
            response = web.json_response({"error": problem}, status=403)
        else:
            response = await handler(request)
        response.headers.update(_HEADERS)
        return response

    return guard


def find_intrusion(request: web.Request, names: Collection[str]) -> str | None:
    """Say why a request is not one of the page's, or None."""
    origin = request.headers.get("Origin")
    try:
        host = urlsplit(f"//{request.host}").hostname or ""
        asks = None if origin is None else urlsplit(origin).netloc.lower()
    except ValueError as error:
        return str(error)
    if not (_is_number(host) or {host, host.removesuffix(".local")} & set(names)):
        return f"this page does not go by the name {host!r}; --allowed_hosts would allow it"
    if not request.path.startswith("/api/"):
        return None
    if asks is not None and asks != request.host.lower():
        return f"a request of another site, {origin!r}"
    if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
        return "a request of another site"
    return None


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    return host == "localhost" or (_is_number(host) and ipaddress.ip_address(host).is_loopback)

"""An aiohttp application that only its own page may use: guard, headers, errors, Ctrl-C."""

import asyncio
import ipaddress
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Collection
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

log = logging.getLogger(__name__)

LARGEST_REQUEST = 64 * 1024
"""Bytes; an answer has a few hundred, a dialogue some thousands."""

_HEADERS = {
    # Scripts and styles come from this server alone, and no text can become HTML.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_guarded_app(allowed_hosts: Collection[str] = ()) -> web.Application:
    """Make an empty application that refuses other sites and reports errors as JSON.

    Args:
        allowed_hosts: Names of this server besides this machine's own.
    """
    own = socket.gethostname().lower()
    names = {"localhost", own, f"{own}.local", *(name.lower() for name in allowed_hosts)}
    app = web.Application(
        client_max_size=LARGEST_REQUEST, middlewares=[make_guard(names), report_errors]
    )
    app.on_response_prepare.append(add_headers)
    return app


async def add_headers(_: web.Request, response: web.StreamResponse) -> None:
    """Add the security headers to a response, streamed or not."""
    response.headers.update(_HEADERS)


async def listen(app: web.Application, host: str, port: int) -> None:
    """Serve until the process receives SIGINT or SIGTERM."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=2.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        everywhere = host in ("0.0.0.0", "::")  # noqa: S104 - compared, not listened on
        name = socket.gethostname() if everywhere else f"[{host}]" if ":" in host else host
        url = f"http://{name}:{runner.addresses[0][1]}/"
        log.info("The page is at %s (Ctrl-C stops it)", url)
        if host not in ("localhost", "127.0.0.1", "::1"):
            log.warning(
                "Anyone who reaches this port can read the dialogues and answer in any name"
            )
        await stop.wait()
    except (OSError, OverflowError) as error:
        raise OSError(
            f"cannot listen on {host}, port {port} ({error}); choose another --port or --host"
        ) from error
    finally:
        await runner.cleanup()


async def read_object(request: web.Request, what: str) -> dict[str, Any]:
    """Read the JSON object that a request sends.

    Args:
        request: The request.
        what: What it sends, for the errors.

    Raises:
        HTTPUnsupportedMediaType: If the body is declared as something else.
        ValueError: If it is no object.
    """
    if request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType(reason=f"{what.capitalize()} is application/json")
    sent: Any = await request.json()
    if not isinstance(sent, dict):
        raise ValueError(f"{what} is a JSON object")
    return sent


@web.middleware
async def report_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn errors into {"error": text}, which the page shows."""
    try:
        return await handler(request)
    except (ValueError, RecursionError) as error:
        return web.json_response({"error": str(error)}, status=getattr(error, "status", 400))
    except web.HTTPError as error:
        return web.json_response({"error": error.reason}, status=error.status)


def make_guard(names: Collection[str]) -> Any:
    """Make the middleware that refuses requests of other sites.

    A site that an annotator has open elsewhere could send requests here: they carry its Origin. A
    site whose name resolves to this machine (DNS rebinding) is recognized by the Host header.

    Args:
        names: Names of this server, in lower case; addresses in numbers are always allowed.
    """

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        response: web.StreamResponse
        if problem := find_intrusion(request, names):
            response = web.json_response({"error": problem}, status=403)
        else:
            response = await handler(request)
        return response

    return guard


def find_intrusion(request: web.Request, names: Collection[str]) -> str | None:
    """Explain why a request does not come from the page, or return None."""
    origin = request.headers.get("Origin", f"http://{request.host}")
    try:
        host = urlsplit(f"//{request.host}").hostname or ""
        sender = urlsplit(origin).netloc.lower()
    except ValueError as error:
        return str(error)
    try:
        ipaddress.ip_address(host)
    except ValueError:
        if host not in names:
            return f"this server is not called {host!r}; allow the name with --allowed_hosts"
    site = request.headers.get("Sec-Fetch-Site", "none")
    own = sender == request.host.lower() and site in ("same-origin", "none")
    if request.path.startswith("/api/") and not own:
        return "this request comes from another site"
    return None

"""Serve the ranking page and save its answers."""

import asyncio
import ipaddress
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from collecting.answer_file import AnswerFile
from collecting.assignments import Assignments, OutdatedError, parse_annotator
from collecting.samples import read_samples
from common.run_folder import expand

log = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"
LARGEST_REQUEST = 64 * 1024
"""Bytes; an answer has a few hundred."""

_HEADERS = {
    # Scripts and styles come from this server alone, and no text can become HTML.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
_ASSIGNMENTS = web.AppKey("assignments", Assignments)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def serve(
    samples: str,
    answers: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    instructions: str | None = None,
    answers_per_dialogue: int | None = None,
    seed: int = 42,
    allowed_hosts: str = "",
) -> None:
    """Serve the page on which annotators rank, until Ctrl-C.

    Annotators give a name; several can work at once. An answer that the page confirms is on the
    disk. Restarted with the same files, the server continues where it stopped.

    Args:
        samples: File of completions, as `sample` writes it.
        answers: File that answers are appended to. Default: <samples>.answers.jsonl next to it.
        host: Address to listen on; 0.0.0.0 is every address of this machine. There are no
            passwords.
        port: Port to listen on; 0 takes a free one.
        instructions: Text file shown to annotators instead of the built-in instructions.
        answers_per_dialogue: Rankings that a dialogue needs. Default: every annotator gets every
            dialogue.
        seed: Seed of the order in which completions are shown.
        allowed_hosts: Names under which browsers may reach the page, separated by commas, besides
            localhost, this machine's name and addresses in numbers.

    Raises:
        ValueError: If a file cannot be used, or a setting is out of range.
        OSError: If the address cannot be used.
    """
    source = expand(samples)
    target = expand(answers) if answers else source.with_suffix(".answers.jsonl")
    text = expand(instructions) if instructions else PAGE / "instructions.txt"
    found = read_samples(source)
    if target.exists() and target.samefile(source):
        raise ValueError(f"answers: {target} is the file of samples")
    words = text.read_text(encoding="utf-8")
    with AnswerFile(target) as file:
        assignments = Assignments(found, file, seed, answers_per_dialogue)
        app = make_app(assignments, words, allowed_hosts.replace(",", " ").split())
        log.info("%d samples from %s; answers are written to %s", len(found), source, target)
        asyncio.run(_listen(app, host, port))
        log.info("Stopped; %s has %d answers", target, len(file))


async def _listen(app: web.Application, host: str, port: int) -> None:
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
            log.warning("Anyone who reaches this port can read the dialogues and rank in any name")
        await stop.wait()
    except (OSError, OverflowError) as error:
        raise OSError(
            f"cannot listen on {host}, port {port} ({error}); choose another --port or --host"
        ) from error
    finally:
        await runner.cleanup()


def make_app(
    assignments: Assignments, instructions: str, allowed_hosts: Collection[str] = ()
) -> web.Application:
    """Make the application.

    Args:
        assignments: Assigns samples, and reads and stores answers.
        instructions: Shown to annotators, as plain text.
        allowed_hosts: Names of this server besides this machine's own.
    """

    async def get_page(_: web.Request) -> web.StreamResponse:
        return web.FileResponse(PAGE / "page.html")

    async def get_instructions(_: web.Request) -> web.StreamResponse:
        return web.json_response({"instructions": instructions})

    own = socket.gethostname().lower()
    names = {"localhost", own, f"{own}.local", *(name.lower() for name in allowed_hosts)}
    app = web.Application(
        client_max_size=LARGEST_REQUEST, middlewares=[make_guard(names), report_errors]
    )
    app[_ASSIGNMENTS] = assignments
    app.router.add_get("/", get_page)
    app.router.add_get("/api/instructions", get_instructions)
    app.router.add_get("/api/task", get_task)
    app.router.add_post("/api/answer", post_answer)
    app.router.add_static("/", PAGE)
    return app


async def get_task(request: web.Request) -> web.Response:
    """Return an annotator's next sample, or the one that is requested."""
    annotator = parse_annotator(request.query.get("annotator"))
    task = request.app[_ASSIGNMENTS].describe(annotator, request.query.get("id"))
    return web.json_response(task)


async def post_answer(request: web.Request) -> web.Response:
    """Save an answer to the disk, then return the next sample."""
    if request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType(reason="An answer is application/json")
    assignments = request.app[_ASSIGNMENTS]
    sent: Any = await request.json()
    if not isinstance(sent, dict):
        raise ValueError("an answer is a JSON object")
    annotator = parse_annotator(sent.get("annotator"))
    answer = assignments.read(annotator, sent)
    try:
        # Blocks the loop for the milliseconds that the disk takes, twice a minute or so.
        assignments.file.append([answer])
    except OSError as error:
        log.error("An answer of %s was not saved: %s", annotator, error)
        raise web.HTTPInsufficientStorage(reason=f"It was not saved: {error.strerror}") from error
    task = assignments.describe(annotator)
    log.info("%s: %d of %d", annotator, task["progress"]["done"], task["progress"]["total"])
    return web.json_response(task)


@web.middleware
async def report_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn errors into {"error": text}, which the page shows."""
    try:
        return await handler(request)
    except (ValueError, RecursionError) as error:
        status = 409 if isinstance(error, OutdatedError) else 400
        return web.json_response({"error": str(error)}, status=status)
    except web.HTTPError as error:
        return web.json_response({"error": error.reason}, status=error.status)


def make_guard(names: Collection[str]) -> Any:
    """Make the middleware that refuses requests of other sites and adds security headers.

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
        response.headers.update(_HEADERS)
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

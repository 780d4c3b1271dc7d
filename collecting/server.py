"""The page and what stands behind it: a few addresses over the :class:`collecting.desk.Desk`."""

import asyncio
import logging
import signal
import socket
import webbrowser
from collections.abc import Collection
from pathlib import Path
from typing import Any

from aiohttp import web

from collecting.answers import AnswerFile
from collecting.desk import Desk, OutdatedError, parse_annotator
from collecting.guard import Handler, is_loopback, make_guard
from collecting.samples import read_samples
from common.run_folder import expand

log = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"
LARGEST_REQUEST = 64 * 1024
"""Bytes; an answer is a few hundred."""

# Said here and not looked up, for what a system says of .js differs, and modules must be scripts.
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_FILES = {f"/{path.name}": path for path in sorted(PAGE.iterdir()) if path.suffix in _KINDS}
_DESK = web.AppKey("desk", Desk)
_INSTRUCTIONS = web.AppKey("instructions", str)


def serve(
    samples: str,
    answers: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    instructions: str | None = None,
    answers_per_dialogue: int | None = None,
    seed: int = 42,
    allowed_hosts: str = "",
    open_browser: bool = False,
) -> None:
    """Show the page on which annotators rank, until Ctrl-C.

    Whoever answers names themself; several can work at once. An answer that the page confirms is on
    the disk. Started again with the same files, everything goes on where it was.

    Args:
        samples: File of completions, as `sample` writes it.
        answers: File that answers are appended to. Default: <samples>.answers.jsonl beside it.
        host: Address to listen on; 0.0.0.0 is every one of this machine. There are no passwords.
        port: Port to listen on; 0 takes one that is free.
        instructions: Text file shown to annotators in place of the built-in instructions.
        answers_per_dialogue: Rankings that a dialogue needs before it is shown to nobody else.
            Default: every annotator gets every dialogue.
        seed: Seed of the order in which completions are shown.
        allowed_hosts: Names under which browsers may reach the page, with commas between, beside
            localhost, this machine's own name and addresses in numbers.
        open_browser: Open the page in this machine's browser.

    Raises:
        ValueError: If a file cannot be used, or a setting is out of range.
        OSError: If the address cannot be listened on.
    """
    source = expand(samples)
    target = expand(answers) if answers else source.with_suffix(".answers.jsonl")
    text = expand(instructions) if instructions else PAGE / "instructions.txt"
    if not 0 <= port <= 65535:
        raise ValueError(f"port must be from 0 to 65535, got {port}")
    asked = read_samples(source)
    if target.exists() and target.samefile(source):
        raise ValueError(f"answers: {target} is the file of samples")
    try:
        words = text.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"instructions: {text} is not UTF-8 ({error})") from error
    with AnswerFile(target) as file:
        names = allowed_hosts.replace(",", " ").split()
        app = make_app(Desk(asked, file, seed, answers_per_dialogue), words, names)
        log.info("%d samples from %s; answers go to %s", len(asked), source, target)
        asyncio.run(_listen(app, host, port, open_browser))
        log.info("Stopped; %s has answers to %d questions", target, len(file))


async def _listen(app: web.Application, host: str, port: int, open_browser: bool) -> None:
    """Serve until the process is told to stop."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=2.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise OSError(
                f"cannot listen on {host}, port {port} ({error.strerror}); another --port or --host"
            ) from error
        url = f"http://{_name(host)}:{runner.addresses[0][1]}/"
        log.info("The page is at %s (Ctrl-C stops)", url)
        if not is_loopback(host):
            log.warning("Whoever reaches this port can read the dialogues and answer in any name")
        if open_browser:
            await asyncio.to_thread(webbrowser.open, url)
        await stop.wait()
    finally:
        await runner.cleanup()


def make_app(desk: Desk, instructions: str, allowed_hosts: Collection[str] = ()) -> web.Application:
    """Make the application.

    Args:
        desk: Deals samples and reads answers.
        instructions: Shown to annotators, as plain text.
        allowed_hosts: Names under which a browser may reach it, beside those of this machine.
    """
    app = web.Application(
        client_max_size=LARGEST_REQUEST, middlewares=[make_guard(allowed_hosts), speak_json]
    )
    app[_DESK] = desk
    app[_INSTRUCTIONS] = instructions
    for address, path in {"/": PAGE / "page.html", **_FILES}.items():
        app.router.add_get(address, _make_file_handler(path))
    app.router.add_get("/api/instructions", get_instructions)
    app.router.add_get("/api/task", get_task)
    app.router.add_post("/api/answer", post_answer)
    return app


# What is asked for ------------------------------------------------------------------------------


def _make_file_handler(path: Path) -> Handler:
    kind = f"{_KINDS[path.suffix]}; charset=utf-8"

    async def get_file(request: web.Request) -> web.StreamResponse:
        return web.FileResponse(path, headers={"Content-Type": kind})

    return get_file


async def get_instructions(request: web.Request) -> web.Response:
    """Give the instructions."""
    return web.json_response({"instructions": request.app[_INSTRUCTIONS]})


async def get_task(request: web.Request) -> web.Response:
    """Give an annotator the next sample, or the one they ask for."""
    annotator = parse_annotator(request.query.get("annotator"))
    return web.json_response(_describe(request.app[_DESK], annotator, request.query.get("id")))


async def post_answer(request: web.Request) -> web.Response:
    """Save an answer, and give the next sample; it is on the disk before this answers."""
    if request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType(reason="An answer is application/json")
    desk = request.app[_DESK]
    try:
        sent = await request.json()
    except RecursionError as error:
        raise ValueError("brackets within brackets without end") from error
    if not isinstance(sent, dict):
        raise ValueError("an answer is a JSON object")
    answer = desk.read(parse_annotator(sent.get("annotator")), sent)
    try:
        # Everybody waits for the disk here: some milliseconds, every half minute or so.
        desk.file.append([answer])
    except OSError as error:
        log.error("An answer of %s was not saved: %s", answer.annotator, error)
        raise web.HTTPInsufficientStorage(reason=f"It was not saved: {error.strerror}") from error
    task = _describe(desk, answer.annotator)
    done = task["progress"]
    log.info("%s: %d of %d", answer.annotator, done["done"], done["total"])
    return web.json_response(task)


def _describe(desk: Desk, annotator: str, name: str | None = None) -> dict[str, Any]:
    sample = desk.samples.get(name) if name else None
    sample = sample or desk.deal(annotator)
    item = desk.show(annotator, sample) if sample else None
    return {
        "annotator": annotator, "progress": desk.describe(annotator), "item": item,
        "last": item["previous"] if item else desk.find_last(annotator),
    }  # fmt: skip


# What stands before that --------------------------------------------------------------------------


@web.middleware
async def speak_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn what went wrong into {"error": text}, which the page shows."""
    try:
        return await handler(request)
    except OutdatedError as error:
        return web.json_response({"error": str(error)}, status=409)
    except ValueError as error:
        return web.json_response({"error": str(error)}, status=400)
    except web.HTTPError as error:
        return web.json_response({"error": error.reason}, status=error.status)


def _name(host: str) -> str:
    """Give an address as a browser takes it."""
    if host in ("0.0.0.0", "::"):  # noqa: S104 - what was asked for is shown, not listened on
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host

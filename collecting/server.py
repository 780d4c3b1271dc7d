"""Serve the ranking page and save its answers."""

import asyncio
import logging
from collections.abc import Collection
from pathlib import Path

from aiohttp import web

from collecting.answer_file import AnswerFile
from collecting.assignments import Assignments, parse_annotator
from collecting.samples import read_samples
from collecting.web import listen, make_guarded_app, read_object
from common.run_folder import expand

log = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"
_ASSIGNMENTS = web.AppKey("assignments", Assignments)


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
        asyncio.run(listen(app, host, port))
        log.info("Stopped; %s has %d answers", target, len(file))


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

    app = make_guarded_app(allowed_hosts)
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
    sent = await read_object(request, "an answer")
    assignments = request.app[_ASSIGNMENTS]
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

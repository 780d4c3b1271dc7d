"""Serve the playground: summaries of one dialogue by several runs, side by side."""

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import web

from collecting.answer_file import AnswerFile
from collecting.web import listen, make_guarded_app, read_object
from common.exits import quieten_models
from common.run_folder import RunFolder, expand
from datamodules.rankings import Answer

if TYPE_CHECKING:
    from collecting.player import Player
    from lightning_modules.reward_scorer import RewardScorer

log = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
LONGEST = 20_000
"""Characters of a dialogue."""


class Stopped(Exception):
    """Nobody waits for the rest of a summary any more."""


Summarize = Callable[[str, str, Callable[[str], None]], Mapping[str, Any]]
"""Summarizes with the run of a name; calls the function with the text so far."""


def play(
    runs: list[str],
    votes: str = "runs/votes.jsonl",
    toxicity: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8001,
    device: str = "auto",
    allowed_hosts: str = "",
) -> None:
    """Summarize a dialogue of your own with several runs, side by side in a browser.

    Votes for the better summary are appended as rankings to a file that reward models, DPO and its
    relatives train on: python train.py fit --config configs/reward.yaml --data.source VOTES.

    Args:
        runs: Run folders.
        votes: File that votes are appended to.
        toxicity: Classifier that scores each summary; by default that of the first run's test.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        device: auto, cpu, cuda, cuda:1, ...
        allowed_hosts: See `rank serve`.

    Raises:
        ValueError: If a run cannot be loaded, or a setting is invalid.
    """
    quieten_models()
    from collecting.player import Player
    from common import hub
    from lightning_modules import exported_run
    from lightning_modules.reward_scorer import RewardScorer

    if not hub.reachable():
        hub.use_cache_only()
    found = [exported_run.read_exported_run(path, {}) for path in runs]
    if len({each.name for each in found}) < len(found):
        raise ValueError(f"two runs have the same name: {', '.join(each.name for each in found)}")
    configs = [RunFolder(each.export.resolve().parent).read_config() for each in found]
    judge_name = toxicity or (configs[0].get("toxicity") or {}).get("model")
    if judge_name:
        name = hub.resolve_model(judge_name, "classifier")
        if problem := hub.find_model_problem(name, "toxicity classifier"):
            raise ValueError(problem)
    target = exported_run.find_device(device)
    with AnswerFile(expand(votes)) as file:
        judge = RewardScorer(judge_name).eval().to(target) if judge_name else None
        players = {}
        for each, config in zip(found, configs, strict=True):
            start = (config.get("model", {}).get("init_args") or {}).get("adapter")
            players[each.name] = Player(each, start, target)
            log.info("%s is loaded", each.export)
        app = make_app(describe(players), use(players, judge), file, allowed_hosts.split(","))
        log.info("Votes are appended to %s", file.path)
        asyncio.run(listen(app, host, port))


def describe(players: Mapping[str, "Player"]) -> list[dict[str, str]]:
    """Describe the runs for the page."""
    return [{"name": name, "reference": player.reference_name} for name, player in players.items()]


def use(players: Mapping[str, "Player"], judge: "RewardScorer | None") -> Summarize:
    """Return the function that summarizes with a run."""

    def summarize(name: str, dialogue: str, show: Callable[[str], None]) -> Mapping[str, Any]:
        began = time.monotonic()
        verdict = players[name].summarize(dialogue, show, judge)
        return verdict._asdict() | {"seconds": round(time.monotonic() - began, 2)}

    return summarize


def make_app(
    runs: Sequence[Mapping[str, str]],
    summarize: Summarize,
    file: AnswerFile,
    allowed_hosts: Sequence[str] = (),
) -> web.Application:
    """Make the application.

    Args:
        runs: Names and references of the runs.
        summarize: Summarizes a dialogue; called in a thread, one call at a time.
        file: Takes the votes.
        allowed_hosts: Names of this server besides this machine's own.
    """
    names = [run["name"] for run in runs]
    lock = asyncio.Lock()

    async def get_page(_: web.Request) -> web.StreamResponse:
        return web.FileResponse(FOLDER / "playground" / "page.html")

    async def get_runs(_: web.Request) -> web.StreamResponse:
        return web.json_response({"runs": runs, "votes": len(file), "file": str(file.path)})

    async def post_summary(request: web.Request) -> web.StreamResponse:
        """Stream lines of JSON: {"text": all so far}, and at last the whole verdict."""
        sent = await read_object(request, "a request")
        name, dialogue = sent.get("run"), read_text(sent, "dialogue")
        if name not in names:
            raise ValueError(f"there is no run {name!r}")
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        loop, lines = asyncio.get_running_loop(), asyncio.Queue[Mapping[str, Any] | None]()
        is_open = True

        def show(text: str) -> None:
            if not is_open:
                raise Stopped
            loop.call_soon_threadsafe(lines.put_nowait, {"text": text})

        def work() -> None:
            try:
                found = summarize(name, dialogue, show)
            except Stopped:
                return
            except Exception as error:  # the page has to say whatever the model raised
                log.error("%s: %s", name, error)
                found = {"error": str(error)}
            loop.call_soon_threadsafe(lines.put_nowait, found)

        async with lock:
            await response.prepare(request)
            task = loop.run_in_executor(None, work)
            task.add_done_callback(lambda _: lines.put_nowait(None))
            try:
                while (line := await lines.get()) is not None:
                    await response.write(json.dumps(line).encode() + b"\n")
            finally:
                is_open = False
                await asyncio.wait([task])  # the next summary needs the model to itself
        await response.write_eof()
        return response

    async def post_vote(request: web.Request) -> web.StreamResponse:
        """Append a vote as a ranking of the runs' summaries."""
        sent = await read_object(request, "a vote")
        answer = read_vote(sent, names)
        file.append([answer])
        log.info("A vote is saved; %s has %d", file.path, len(file))
        return web.json_response({"votes": len(file)})

    app = make_guarded_app([name.strip() for name in allowed_hosts if name.strip()])
    app.router.add_get("/", get_page)
    app.router.add_get("/api/runs", get_runs)
    app.router.add_post("/api/summary", post_summary)
    app.router.add_post("/api/vote", post_vote)
    app.router.add_static("/shared", FOLDER / "page")
    app.router.add_static("/", FOLDER / "playground")
    return app


def read_text(sent: Mapping[str, Any], name: str) -> str:
    """Read a text of a request.

    Raises:
        ValueError: If it is missing, empty or too long.
    """
    text = sent.get(name)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{name}: enter a text")
    if len(text) > LONGEST:
        raise ValueError(f"{name}: at most {LONGEST:,} characters, got {len(text):,}")
    return text.replace("\r\n", "\n")


def read_vote(sent: Mapping[str, Any], names: Sequence[str]) -> Answer:
    """Turn a vote into a ranking: the best summary first, the others tied; or all tied.

    Raises:
        ValueError: If it does not fit the runs.
    """
    dialogue, texts, best = read_text(sent, "dialogue"), sent.get("summaries"), sent.get("best")
    if not isinstance(texts, dict) or set(texts) != set(names) or len(names) < 2:
        raise ValueError("a vote needs a summary of each run, and at least two runs")
    if best not in (None, *names) or not all(isinstance(text, str) for text in texts.values()):
        raise ValueError(f"there is no run {best!r}")
    sources: dict[str, list[str]] = {}  # runs may have written the same
    for name in names:
        sources.setdefault(texts[name], []).append(name)
    if len(sources) < 2:
        raise ValueError("the summaries are the same; nothing can be learned from a vote")
    return Answer(
        id=hashlib.sha256(json.dumps([dialogue, *sources]).encode()).hexdigest()[:16],
        dialogue=dialogue,
        completions=tuple(sources),
        annotator="playground",
        ranks=tuple(1 if best is None or best in names else 2 for names in sources.values()),
        sources=tuple(", ".join(names) for names in sources.values()),
        time=datetime.now(UTC).isoformat(timespec="seconds"),
    )

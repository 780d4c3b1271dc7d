"""The playground: what its server sends and saves, what a player says, and the page itself."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from aiohttp.test_utils import TestClient, TestServer

from collecting.answer_file import AnswerFile
from collecting.play import make_app, play
from collecting.player import Player
from datamodules import PreferenceDataModule
from datamodules.reading import Row
from lightning_modules.exported_run import load_generator, read_exported_run
from lightning_modules.reward_scorer import RewardScorer
from tests.backbones.decoders import save
from tests.browser import Watch, find_faint_texts, open_chromium
from tests.collecting.samples import read_lines
from tests.serving import serve_in_thread

RUNS = [{"name": "lora", "reference": "none"}, {"name": "ppo", "reference": "runs/lora/export"}]
HOSTILE = "<img src=x onerror=alert(1)> Bob"
VERDICTS: dict[str, Mapping[str, Any]] = {
    "lora": {"text": HOSTILE, "tokens": [[HOSTILE, None]], "toxicity": None, "unknown": ["Bob"],
             "seconds": 0.1},
    "ppo": {"text": "Ann is late.", "tokens": [["Ann", 2.5], [" is late.", -0.3], ["", 0.0]],
            "toxicity": 0.25, "unknown": [], "seconds": 0.2},
}  # fmt: skip


def summarize(name: str, dialogue: str, show: Callable[[str], None]) -> Mapping[str, Any]:
    if dialogue == "too long":
        raise ValueError("the prompt does not fit")
    if dialogue == "no memory":
        raise RuntimeError("out of memory")
    show(VERDICTS[name]["text"][:3])
    return VERDICTS[name]


@pytest.fixture
def file(tmp_path: Path) -> Iterator[AnswerFile]:
    with AnswerFile(tmp_path / "votes.jsonl") as file:
        yield file


def converse(file: AnswerFile, scenario: Callable[[TestClient], Awaitable[None]]) -> None:
    async def run() -> None:
        async with TestClient(TestServer(make_app(RUNS, summarize, file))) as client:
            await scenario(client)

    asyncio.run(run())


def test_summaries_are_streamed_and_votes_are_rankings(file: AnswerFile) -> None:
    async def scenario(client: TestClient) -> None:
        found = await (await client.get("/api/runs")).json()
        assert found["runs"] == RUNS and found["votes"] == 0
        sent = {"run": "ppo", "dialogue": "Ann: Hi"}
        lines = (await (await client.post("/api/summary", json=sent)).text()).splitlines()
        assert [json.loads(line) for line in lines] == [{"text": "Ann"}, VERDICTS["ppo"]]
        sent["dialogue"] = "too long"
        response = await client.post("/api/summary", json=sent)
        lines = (await response.text()).splitlines()
        assert json.loads(lines[-1]) == {"error": "the prompt does not fit"}
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        sent["dialogue"] = "no memory"
        lines = (await (await client.post("/api/summary", json=sent)).text()).splitlines()
        assert json.loads(lines[-1]) == {"error": "out of memory"}
        for best, texts in (("ppo", ["a", "b"]), (None, ["a", "c"])):
            summaries = dict(zip(("lora", "ppo"), texts, strict=True))
            vote = {"dialogue": "Ann: Hi", "summaries": summaries, "best": best}
            assert (await client.post("/api/vote", json=vote)).status == 200
        for wrong in (
            {"best": "x"}, {"dialogue": " "}, {"summaries": {"lora": "a"}},
            {"summaries": {"lora": "a", "ppo": "a"}}, {"dialogue": "x" * 20_001},
        ):  # fmt: skip
            response = await client.post("/api/vote", json=vote | wrong)
            assert response.status == 400 and (await response.json())["error"]
        other = {"Origin": "http://evil.example", "Content-Type": "application/json"}
        assert (await client.post("/api/vote", json=vote, headers=other)).status == 403
        assert (await client.post("/api/vote", data="x")).status == 415

    converse(file, scenario)
    rows = read_lines(file.path)
    assert [row["ranks"] for row in rows] == [[2, 1], [1, 1]]
    assert rows[0]["completions"] == ["a", "b"] and rows[0]["sources"] == ["lora", "ppo"]


def test_a_reader_who_leaves_stops_the_generation(file: AnswerFile) -> None:
    ends: list[str] = []

    def summarize(name: str, dialogue: str, show: Callable[[str], None]) -> Mapping[str, Any]:
        if name == "lora":
            return VERDICTS[name]
        try:
            for _ in range(3000):
                show("so far")
                time.sleep(0.01)
        except BaseException as stop:
            ends.append(type(stop).__name__)
            raise
        return VERDICTS[name]

    async def run() -> None:
        async with TestClient(TestServer(make_app(RUNS, summarize, file))) as client:
            sent = {"run": "ppo", "dialogue": "Ann: Hi"}
            response = await client.post("/api/summary", json=sent)
            assert json.loads(await response.content.readline()) == {"text": "so far"}
            response.close()
            # The other run waits for the lock, so its answer shows that the first one has ended.
            response = await client.post("/api/summary", json=sent | {"run": "lora"})
            assert json.loads(await response.content.readline()) == VERDICTS["lora"]

    asyncio.run(run())
    assert ends == ["Stopped"]


def test_a_reward_model_can_train_on_votes(file: AnswerFile, roberta: str) -> None:
    async def scenario(client: TestClient) -> None:
        for number in range(12):
            summaries = {"lora": f"a {number}", "ppo": f"b {number}"}
            vote = {"dialogue": f"Ann: {number}", "summaries": summaries, "best": "ppo"}
            await client.post("/api/vote", json=vote)

    converse(file, scenario)
    data = PreferenceDataModule(str(file.path), roberta, references=None, max_length=64)
    data.setup("fit")
    assert len(next(iter(data.train_dataloader()))["pairs"]) > 0


@pytest.mark.parametrize("family", ["encoder-decoder", "decoder-only", "beams"])
def test_a_player_streams_what_the_run_generates(
    family: str, t5: str, roberta: str, trained_adapter: str, tmp_path: Path
) -> None:
    backbone = save("llama", tmp_path / "llama") if family == "decoder-only" else trained_adapter
    given: dict[str, Any] = {"max_new_tokens": 6, "num_beams": 2 if family == "beams" else 1}
    run = read_exported_run(backbone, given)
    player = Player(run, None, torch.device("cpu"))
    shown: list[str] = []
    dialogue = "#Person1#: Hello there, Ann!"
    found = player.summarize(dialogue, shown.append, RewardScorer(roberta))
    generate = load_generator(run, torch.device("cpu"))
    assert generate([Row("", dialogue, ())], (0, 0)) == [found.text]
    assert shown[-1] == found.text and (len(shown) > 3 or family == "beams")
    assert "".join(text for text, _ in found.tokens).strip() == found.text
    assert found.toxicity is not None and 0 < found.toxicity < 1
    ratios = [ratio for _, ratio in found.tokens]
    if family == "decoder-only":
        assert set(ratios) == {None} and player.reference_name == "none"
        return
    assert max(abs(ratio or 0) for ratio in ratios) > 0
    again = Player(run, trained_adapter, torch.device("cpu"))
    found = again.summarize(dialogue, shown.append, None)
    assert again.reference_name == trained_adapter and found.toxicity is None
    assert {ratio for _, ratio in found.tokens} == {0.0}  # it is its own reference
    lost = Player(run, str(tmp_path / "gone"), torch.device("cpu"))
    assert lost.reference is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["{folder}/none"], "there is no folder"),
        (["{adapter}", "{adapter}"], "two runs have the same name"),
        (["{adapter}", "--toxicity", "{folder}"], "toxicity classifier"),
    ],
)
def test_what_cannot_work_is_said_before_models_are_loaded(
    change: list[str], message: str, trained_adapter: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(Player, "__init__", lambda *_: pytest.fail("a model was loaded"))
    words = [part.format(folder=tmp_path, adapter=trained_adapter) for part in change]
    toxicity = words.pop() if "--toxicity" in words else None
    runs = [word for word in words if word != "--toxicity"]
    with pytest.raises(ValueError, match=message):
        play(runs, str(tmp_path / "votes.jsonl"), toxicity)


@pytest.mark.browser
def test_the_page_in_a_browser_by_keyboard_alone(file: AnswerFile, tmp_path: Path) -> None:
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    app = make_app(RUNS, summarize, file)
    with serve_in_thread(app) as address, open_chromium() as browser:
        for width, scheme in ((1280, "light"), (390, "dark")):
            viewport = {"width": width, "height": 844}
            page = browser.new_page(viewport=viewport, color_scheme=scheme)
            watch = Watch(page)
            page.goto(address)
            page.locator(".card").nth(1).wait_for()
            page.keyboard.press("Tab")  # the example, the text, the button
            page.keyboard.press("Enter")
            page.keyboard.press("Control+Enter")
            sync.expect(page.locator("#status")).to_have_text("Which one is best?")
            cards = page.locator(".card")
            sync.expect(cards.nth(0).locator(".summary")).to_have_text(HOSTILE)
            sync.expect(cards.nth(0).locator(".unknown")).to_have_text("Bob")
            sync.expect(cards.nth(1).locator(".up-3")).to_have_text("Ann")
            sync.expect(cards.nth(1)).to_contain_text("25.0 %")
            assert find_faint_texts(page) == []
            page.keyboard.press("Tab")
            page.keyboard.press("2")
            sync.expect(page.locator("#status")).to_have_text("Saved: ppo is best")
            assert page.locator("img").count() == 0 and watch.complaints == []
            assert all(url.startswith(address) for url in watch.requests)
            assert page.locator("html").bounding_box()["width"] <= width
    assert [row["ranks"] for row in read_lines(file.path)] == [[2, 1], [2, 1]]

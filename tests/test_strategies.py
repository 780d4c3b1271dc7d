"""Two ranks take the same steps as one, under DDP and FSDP2."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import train
from common.run_folder import RunFolder
from tests.breaking import poison, without_clocks
from tests.launching import last_words, run_ranks
from tests.rows import make_rows, write_rows
from tests.test_accumulation import distance
from tests.test_reward_model import REFERENCES

ROOT = Path(__file__).parent.parent
STRATEGIES = {"ddp": "ddp.yaml", "fsdp2": "fsdp.yaml"}
"""Lightning's names, and their overlays."""

SHARDED = ["fsdp2"]


def cases(kinds: Iterable[str]) -> list[Any]:
    """Pair each kind with each strategy."""
    return [
        pytest.param(kind, strategy, id=f"{kind}-{strategy}")
        for kind in kinds
        for strategy in STRATEGIES
    ]


METHODS: dict[str, tuple[float, list[str]]] = {
    "full_ft": (0.5, []),
    "lora": (0.5, ["--model.r", "4", "--model.lora_dropout", "0"]),
    "soft_prompt": (0.005, ["--model.virtual_tokens", "5"]),
    "reward": (0.01, ["--data.max_length", "100"]),
    "dpo": (0.01, ["--model.policy.r", "4", "--validate_first", "false"]),
}
"""The gradient norm at which each method clips, which is exceeded, and its settings."""

Run = Callable[..., RunFolder]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """7 rows: two steps of 3 and 4, which two ranks cannot share evenly."""
    folder = tmp_path_factory.mktemp("data")
    rows = make_rows(10)
    answers = [
        # Texts that are nothing alike: the gradient is a difference between theirs.
        {"id": row["id"], "dialogue": row["dialogue"], "ranks": [2, 1],
         "completions": [row["summary"], str(i) * 30]}
        for i, row in enumerate(rows)
    ]  # fmt: skip
    write_rows(folder / "rankings", train=answers[:7], validation=answers[7:], test=answers[7:])
    write_rows(folder / "references", train=REFERENCES, validation=REFERENCES[:1])
    return write_rows(folder, train=rows[:7], validation=rows[7:], test=rows[7:])


@pytest.fixture
def run(t5: str, roberta: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a method, on one rank or by a strategy on two."""
    monkeypatch.setattr("callbacks.plots.draw_run", lambda folder: None)

    def arguments(method: str, name: str) -> list[str]:
        clip, settings = METHODS[method]
        settings = [*settings, "--checkpoint.monitor", "val/loss"]
        if method == "reward":
            settings += ["--data.references", str(data / "references")]
        else:
            settings += ["--model.decoding.max_new_tokens", "4", "--toxicity.model", "null"]
        if method == "dpo":
            settings += ["--data.dialogues", str(data)]
        else:
            settings += ["--model.dropout", "0.0"]
        learns_from_rankings = method in ("reward", "dpo")
        return [
            "--config", str(ROOT / "configs" / f"{method}.yaml"), *settings,
            "--model.backbone", roberta if method == "reward" else t5,
            "--model.optimizer.lr", "0.01", "--model.optimizer.eps", "1e-3",
            "--data.source", str(data / "rankings" if learns_from_rankings else data),
            "--trainer.max_epochs", "1", "--trainer.precision", "32-true",
            "--trainer.gradient_clip_val", str(clip), "--trainer.accelerator", "cpu",
            "--trainer.log_every_n_steps", "1", "--trainer.callbacks+=tests.ranks.SeenRows",
            "--run_dir", str(tmp_path / name),
        ]  # fmt: skip

    def run(
        command: str, method: str, name: str, strategy: str = "", *more: str, code: int = 0
    ) -> RunFolder:
        cut = ["--data.batch_size", "2" if strategy else "4"]
        asked = [command, *arguments(method, name), *cut, *more]
        if not strategy:
            train.main(asked)
        else:
            overlay = ROOT / "configs" / "overlays" / STRATEGIES[strategy]
            asked += ["--config", str(overlay), "--trainer.devices", "2"]
            logs = tmp_path / f"logs_{name}"
            logs.mkdir(exist_ok=True)
            found = run_ranks(lambda: train.main(asked), logs)
            assert found == [code, code], last_words(logs)
        return RunFolder(tmp_path / name)

    return run


class Left(NamedTuple):
    """Results of a fit: logged values, checkpoint, export, the rows of each step, and each rank's
    share of the model."""

    metrics: list[dict[str, float]]
    final: dict[str, float]
    weights: dict[str, Tensor]
    steps: set[int]
    moments: dict[str, Tensor]
    exported: dict[str, Tensor]
    seen: list[list[str]]
    shares: list[float]


def look_at(folder: RunFolder, ranks: int) -> Left:
    last = torch.load(folder.checkpoints / "last.ckpt", weights_only=True)
    (optimizer,) = last["optimizer_states"]
    states = optimizer["state"]
    # By themselves: beside a number of steps nobody would see how far moments are apart.
    steps = {int(state["step"]) for state in states.values()}
    moments = {
        f"{number} {name}": state[name]
        for number, state in states.items()
        for name in state.keys() - {"step"}
    }
    files = (folder.path / f"seen{rank}.jsonl" for rank in range(ranks))
    seen = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    (exported,) = folder.export.glob("*.safetensors")
    return Left(
        [
            {name: float(value) for name, value in without_clocks(row).items() if value}
            for row in folder.read_metrics_csv()
        ],
        {
            name: metric["value"]
            for name, metric in without_clocks(folder.read_summary()["metrics"]).items()
        },
        last["state_dict"], steps, moments, load_file(exported),
        [sorted(row for part in step for row in part["ids"]) for step in zip(*seen, strict=True)],
        [batches[-1]["share"] for batches in seen],
    )  # fmt: skip


def assert_close(found: Sequence[dict[str, float]], expected: Sequence[dict[str, float]]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("method", "strategy"), cases(METHODS))
def test_two_ranks_take_the_steps_of_one(method: str, strategy: str, run: Run) -> None:
    alone = look_at(run("fit", method, "alone"), 1)
    shared = look_at(run("fit", method, "shared", strategy), 2)
    assert len(alone.seen) == 2
    assert shared.seen == alone.seen
    whole = 1.0 if strategy == "ddp" else 0.5
    assert shared.shares == pytest.approx([whole, whole], abs=0.02)
    assert len({row for step in shared.seen for row in step}) == sum(map(len, shared.seen)) == 7
    assert_close(shared.metrics, alone.metrics)
    assert_close([shared.final], [alone.final])
    assert shared.steps == alone.steps == {2}
    assert distance(shared.weights, alone.weights) < 1e-5
    # A reward's gradient is the difference of two that are nearly alike: rounding weighs more.
    assert distance(shared.moments, alone.moments) < (1e-4 if method == "reward" else 1e-5)
    assert distance(shared.exported, alone.exported) < 1e-5
    norms = [row["train/grad_norm"] for row in alone.metrics if "train/grad_norm" in row]
    assert max(norms) > METHODS[method][0], "nothing is clipped"


@pytest.mark.parametrize("strategy", SHARDED)
def test_micro_batches_under_sharding_are_one_step(strategy: str, run: Run) -> None:
    """With checkpointing too, which computes gathered blocks again in the backward pass."""
    alone = look_at(run("fit", "lora", "alone", "", "--data.batch_size", "8"), 1)
    cut = ["--trainer.accumulate_grad_batches", "2", "--model.gradient_checkpointing", "true"]
    shared = look_at(run("fit", "lora", "shared", strategy, *cut), 2)
    assert len(shared.seen) == 2 * len(alone.seen)
    assert_close([shared.final], [alone.final])
    assert distance(shared.weights, alone.weights) < 1e-5
    assert distance(shared.moments, alone.moments) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("strategy", SHARDED)
def test_a_non_finite_step_stops_all_ranks_under_sharding(strategy: str, run: Run) -> None:
    stopped = run("fit", "lora", "stopped", strategy, *poison(1), code=2)
    assert len(list(stopped.nonfinite.iterdir())) == 2
    saved = [torch.load(file, weights_only=True) for file in stopped.nonfinite.iterdir()]
    assert saved[0]["ids"] != saved[1]["ids"]
    assert not (stopped.checkpoints / "last.ckpt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", SHARDED)
@pytest.mark.parametrize("method", ["full_ft", "soft_prompt"])
def test_a_sharded_test_gives_the_texts_of_one_rank(method: str, strategy: str, run: Run) -> None:
    lively = ["--model.optimizer.lr", "0.05"]  # enough to change every text
    run("fit", method, "run", strategy, *lively)
    texts = [
        [row["prediction"] for row in run("test", method, "run", *how).read_predictions()]
        for how in ((strategy,), ("", "--overwrite", "true"))
    ]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 3

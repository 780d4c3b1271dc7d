"""One optimizer step is the same step however its rows are padded, cut and dealt out to ranks."""

import itertools
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForSeq2SeqLM

import train
from common.hub import load_tokenizer
from common.run_folder import RunFolder
from datamodules.batching import Batch, Collator, Example, LengthBatchSampler
from datamodules.preferences import PreferenceDataModule
from datamodules.prompts import Instruction
from lightning_modules import FullFT, LoRA, RewardModel, SoftPrompt
from lightning_modules.optimizer_step import seed_step
from tests.batches import loader, make_trainer, settle
from tests.breaking import poison
from tests.rows import make_rows, write_rows
from tests.test_reward_model import make_rankings

ROOT = Path(__file__).parent.parent
TWO_RANKS = ["--trainer.devices", "2", "--trainer.strategy", "ddp_fork"]
CUTS = {
    "8x1": ["8", "1"],
    "4x2": ["4", "2"],
    "2x4": ["2", "4"],
    "1x8": ["1", "8"],
    "2x2 on 2 ranks": ["2", "2", *TWO_RANKS],
    "1x4 on 2 ranks": ["1", "4", *TWO_RANKS],
}
METHODS: dict[str, Callable[..., Any]] = {
    "full_ft": FullFT,
    "lora": lambda **kw: LoRA(r=4, lora_dropout=0.0, target_modules=["q", "v", "wo"], **kw),
    "soft_prompt": lambda **kw: SoftPrompt(virtual_tokens=5, **kw),
}

CLIP = 1.55
"""Norm at which gradients are clipped: in the midst of theirs."""


def make_batches(t5: str, sizes: Sequence[int]) -> list[Batch]:
    """Eight rows cut into batches of these sizes, each padded by itself."""
    tokenizer = load_tokenizer(t5)
    examples = []
    for index, row in enumerate(make_rows(8)):
        tokens = tokenizer([row["dialogue"], row["summary"]], return_tensors="np")["input_ids"]
        examples.append(Example(index, row["id"], row["dialogue"], [row["summary"]], *tokens))
    ends = list(itertools.accumulate(sizes))
    return [Collator(0)(examples[end - size : end]) for size, end in zip(sizes, ends, strict=True)]


def slow_step(module: Any, batch: Batch) -> tuple[float, dict[str, Tensor]]:
    """Mean token loss of the rows and its gradients: a row at a time, nothing padded."""
    total, tokens = torch.zeros(()), 0
    for row in range(len(batch["ids"])):
        source = batch["input_ids"][row][batch["attention_mask"][row].bool()]
        target = batch["labels"][row][batch["labels"][row] != -100]
        logits = module.model(
            input_ids=source[None], attention_mask=torch.ones_like(source)[None],
            decoder_input_ids=torch.cat([torch.tensor([0]), target[:-1]])[None],
        ).logits  # fmt: skip
        total = total + F.cross_entropy(logits[0], target, reduction="sum")
        tokens += len(target)
    module.zero_grad()
    (total / tokens).backward()
    return float(total.detach() / tokens), take_gradients(module)


def take_gradients(module: torch.nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Relative distance of two models' gradients or weights, all their numbers as one vector."""
    assert found.keys() == expected.keys()
    far = sum((found[name] - value).square().sum() for name, value in expected.items())
    return float((far / sum(value.square().sum() for value in expected.values())) ** 0.5)


class Watch(L.Callback):
    """Keeps the gradients that callbacks see before a step, and those that the optimizer took."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.seen = take_gradients(pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.taken = take_gradients(pl_module)


@pytest.mark.parametrize("sizes", [(8,), (4, 4), (2,) * 4, (1,) * 8, (5, 0, 3)], ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_a_step_is_that_of_its_tokens_however_cut_and_padded(
    name: str, sizes: tuple[int, ...], t5: str, tmp_path: Path
) -> None:
    module = settle(METHODS[name](backbone=t5, dropout=0.0))
    if name == "lora":  # B starts at 0, and A then has no gradient
        for n, p in module.named_parameters():
            if "lora_B" in n:
                torch.nn.init.normal_(p, std=0.1)
    expected_loss, expected = slow_step(module, make_batches(t5, [8])[0])
    norm = float(torch.nn.utils.get_total_norm(expected.values()))
    watch = Watch()
    trainer = make_trainer(
        tmp_path, callbacks=[watch], accumulate_grad_batches=len(sizes), gradient_clip_val=norm / 2
    )
    trainer.fit(module, loader(*make_batches(t5, sizes)))
    assert trainer.global_step == 1
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(expected_loss, rel=1e-6)
    assert distance(watch.seen, expected) < 2e-6  # oneDNN rounds differently for other shapes
    clipped = {n: g * norm / 2 / (norm + 1e-6) for n, g in expected.items()}  # torch's epsilon
    assert distance(watch.taken, clipped) < 2e-6


def test_rankings_weigh_the_same_however_cut(roberta: str, tmp_path: Path) -> None:
    data = PreferenceDataModule("mini", roberta)
    data.tokenizer = load_tokenizer(roberta)
    rankings = make_rankings()
    found = []
    for sizes in ((4,), (3, 1), (2, 0, 1, 1)):
        ends = list(itertools.accumulate(sizes))
        batches = [data.collate(rankings[b - n : b]) for n, b in zip(sizes, ends, strict=True)]
        watch = Watch()
        trainer = make_trainer(tmp_path, callbacks=[watch], accumulate_grad_batches=len(sizes))
        trainer.fit(settle(RewardModel(roberta, dropout=0.0)), loader(*batches))
        found.append((float(trainer.callback_metrics["train/loss"]), watch.taken))
    for loss, taken in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-6)
        assert distance(taken, found[0][1]) < 1e-4  # the two texts of a ranking are nearly alike


def test_random_numbers_depend_on_purpose_rank_and_step() -> None:
    def draw(*place: int) -> tuple[float, float, float]:
        seed_step(42, *place)
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    places = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 1, 7)]
    drawn = [draw(*place) for place in places]
    assert [draw(*place) for place in places] == drawn
    for numbers in zip(*drawn, strict=True):
        assert len(set(numbers)) == len(places)


# The rows of a step -----------------------------------------------------------------------------


def steps_of(count: int, batch_size: int, world: int, accumulate: int) -> list[list[int]]:
    """The rows of each optimizer step of an epoch, as the ranks together get them."""
    lengths = [1 + (7 * i) % 31 for i in range(count)]
    ranks = [
        list(LengthBatchSampler(lengths, batch_size, True, 3, world, rank, accumulate))
        for rank in range(world)
    ]
    micro = []
    for parts in zip(*ranks, strict=True):
        rows = [row for place in itertools.zip_longest(*parts) for row in place if row is not None]
        assert max(map(len, parts)) <= batch_size or (batch_size, accumulate) == (1, 1)
        micro.append(rows)
    return [
        list(itertools.chain(*micro[i : i + accumulate])) for i in range(0, len(micro), accumulate)
    ]


@given(st.integers(4, 200), st.integers(0, 3), st.integers(0, 2))
def test_a_step_has_the_same_rows_in_the_same_order_however_cut_and_dealt(
    count: int, halvings: int, doublings: int
) -> None:
    whole = steps_of(count, 8, 1, 1)
    assert sorted(row for step in whole for row in step) == list(range(count))
    world = 2**doublings
    batch_size = max(1, 8 // 2**halvings // world)
    accumulate = 8 // batch_size // world
    if (batch_size, accumulate) == (1, 1) and count % world:
        return  # a rank may get two rows: see LengthBatchSampler
    assert steps_of(count, batch_size, world, accumulate) == whole


def test_only_batches_of_one_row_may_be_empty() -> None:
    for count, batch_size, world, accumulate in itertools.product(
        range(4, 60), (1, 2, 3), (1, 2, 4), (1, 2, 3, 8)
    ):
        parts = [
            len(batch)
            for rank in range(world)
            for batch in LengthBatchSampler(
                [5] * count, batch_size, True, 0, world, rank, accumulate
            )
        ]
        assert min(parts) >= 1 or (batch_size == 1 and accumulate > 1)


# From the command line to the weights -----------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """22 rows: the epoch's three steps of up to 8 rows are not of one size."""
    folder = tmp_path_factory.mktemp("data")
    return write_rows(folder, train=make_rows(22), validation=make_rows(2))


def fit(t5: str, data: Path, run: Path, batch_size: str, accumulate: str, *more: str) -> RunFolder:
    """Train every weight for two epochs of three steps, with warm-up, decay and clipping."""
    train.main(
        [
            "fit", "--config", str(ROOT / "configs" / "full_ft.yaml"), "--model.backbone", t5,
            "--model.dropout", "0.0", "--model.optimizer", "torch.optim.AdamW",
            "--model.optimizer.lr", "0.01", "--model.optimizer.eps", "1e-4",
            "--model.optimizer.weight_decay", "0.1", "--model.warmup_fraction", "0.34",
            "--model.decoding.max_new_tokens", "2",
            "--data.source", str(data), "--data.batch_size", batch_size,
            "--trainer.accumulate_grad_batches", accumulate, "--trainer.max_epochs", "2",
            "--trainer.gradient_clip_val", str(CLIP), "--trainer.precision", "32-true",
            "--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "1",
            "--toxicity.model", "null", "--run_dir", str(run), *more,
        ]
    )  # fmt: skip
    return RunFolder(run)


class Course(NamedTuple):
    """What a fit went through, a number a step, and what it ended with."""

    losses: list[float]
    norms: list[float]
    weights: dict[str, Tensor]


def read_course(run: RunFolder) -> Course:
    rows = [row for row in run.read_metrics_csv() if row["train/loss"]]
    last = torch.load(run.checkpoints / "last.ckpt", weights_only=True)
    return Course(
        [float(row["train/loss"]) for row in rows],
        [float(row["train/grad_norm"]) for row in rows],
        last["state_dict"],
    )


def slow_fit(t5: str, data: Path) -> Course:
    """The same in plain PyTorch: each step's rows in one padded batch."""
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_pretrained(t5)
    model.eval()  # no dropout
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, eps=1e-4, weight_decay=0.1)
    tokenizer = load_tokenizer(t5)
    rows = [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()]
    prompts = [Instruction().wrap(row["dialogue"]) for row in rows]
    targets = [row["summary"] for row in rows]
    rates = [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]  # two steps of warm-up, then down to 0 over four
    lengths = [len(tokenizer(prompt)["input_ids"]) for prompt in prompts]
    sampler = LengthBatchSampler(lengths, 8, shuffle=True, seed=42)
    losses, norms = [], []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        for step in sampler:
            inputs = tokenizer([prompts[i] for i in step], padding=True, return_tensors="pt")
            labels = tokenizer([targets[i] for i in step], padding=True, return_tensors="pt")
            target = labels["input_ids"].masked_fill(labels["attention_mask"] == 0, -100)
            logits = model(**inputs, labels=target).logits
            loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum")
            loss = loss / labels["attention_mask"].sum()
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)))
            optimizer.param_groups[0]["lr"] = 0.01 * rates[len(losses) - 1]
            optimizer.step()
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    return Course(losses, norms, weights)


@pytest.fixture(scope="module")
def slow(t5: str, data: Path) -> Course:
    return slow_fit(t5, data)


@pytest.mark.parametrize("cut", CUTS)
def test_a_fit_is_that_of_a_plain_loop_however_cut(
    cut: str, t5: str, data: Path, slow: Course, tmp_path: Path
) -> None:
    found = read_course(fit(t5, data, tmp_path / "run", *CUTS[cut]))
    assert max(slow.norms) > CLIP > min(slow.norms)  # some are clipped, and some are not
    assert found.losses == pytest.approx(slow.losses, rel=1e-6)
    assert found.norms == pytest.approx(slow.norms, rel=1e-5)
    assert distance({name: slow.weights[name] for name in found.weights}, found.weights) < 1e-6


def test_a_non_finite_gradient_stops_the_run_and_saves_the_batch(
    t5: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(SystemExit) as stop:
        fit(t5, data, folder.path, *CUTS["2x4"], *poison(3))
    assert stop.value.code == 2
    saved = torch.load(folder.nonfinite / "step00000003-rank0.pt", weights_only=True)
    assert list(saved["values"]) == ["train/grad_norm"]
    assert [len(batch["input_ids"]) for batch in saved["batch"]] == [2, 2, 2, 1]
    assert saved["ids"] == [row for batch in saved["batch"] for row in batch["ids"]]
    message = capsys.readouterr().err
    assert f"rows {saved['ids'][0]}" in message
    assert "train/grad_norm is nan at step 3" in message
    last = torch.load(folder.checkpoints / "last.ckpt", weights_only=True)
    assert last["global_step"] == 3
    assert all(value.isfinite().all() for value in last["state_dict"].values())

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from transformers import AutoTokenizer

from datamodules import DialogSumDataModule, Instruction, Plain, Template
from datamodules.batching import Batch
from datamodules.encoding import Encoder
from datamodules.reading import DataError, Row

EOS = 1
DIALOGSUM = Path(
    os.environ.get("DIALOGSUM_DIR", Path(__file__).parents[3] / "shared" / "data" / "dialogsum")
)


@pytest.fixture
def make(tmp_path: Path, t5: str) -> Callable[..., DialogSumDataModule]:
    def make(**settings: Any) -> DialogSumDataModule:
        defaults: dict[str, Any] = {
            "source": str(tmp_path), "tokenizer": t5, "prompt": Plain(),
            "batch_size": 4,
        }  # fmt: skip
        return DialogSumDataModule(**{**defaults, **settings})

    return make


def write(path: Path, count: int, start: int = 0) -> None:
    """Write rows whose dialogues are of 10, 11, ... letters."""
    rows = [
        {"id": f"r{i}", "dialogue": f"{i:03d}" + "x" * (7 + i), "summary": f"sum {i}"}
        for i in range(start, start + count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def encoder(t5: str, **settings: Any) -> Encoder:
    tokenizer = AutoTokenizer.from_pretrained(t5)
    defaults: dict[str, Any] = {
        "prompt": Template("<{dialogue}>"), "examples": [],
        "max_source_length": 13, "max_target_length": 8,
    }  # fmt: skip
    return Encoder(tokenizer, **{**defaults, **settings})


# Prompts and labels -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dialogue", "expected", "cut"),
    [
        ("0123456789", "<0123456789></s>", False),  # 12 bytes and EOS: exactly 13
        ("0123456789A", "<0123456789></s>", True),  # one over
        ("0123456789" * 9, "<0123456789></s>", True),
        ("012345678é", "<012345678></s>", True),  # a character is kept whole or not at all
        ("<>", "<<>></s>", False),
    ],
)
def test_only_the_end_of_the_dialogue_is_cut(
    t5: str, dialogue: str, expected: str, cut: bool
) -> None:
    (encoded,) = (subject := encoder(t5)).encode([Row("a", dialogue, ("s",))])
    assert subject.tokenizer.decode(encoded.source) == expected
    assert encoded.cut == cut


def test_what_fits_is_the_whole_string_tokenised(t5: str) -> None:
    subject = encoder(t5, prompt=Instruction(), max_source_length=500)
    dialogue = "  #Person1#: Caf\u00e9?\n\n"
    (encoded,) = subject.encode([Row("a", dialogue, ("s",))])
    assert encoded.source.tolist() == subject.tokenizer(Instruction().wrap(dialogue))["input_ids"]


def test_an_instruction_that_leaves_no_room_is_refused(t5: str) -> None:
    # "<" and ">" and EOS are 3 tokens; the dialogue needs one more.
    with pytest.raises(ValueError, match=r"Template takes 3 tokens.*max_source_length 3"):
        encoder(t5, max_source_length=3)
    subject = encoder(t5, max_source_length=4)
    (encoded,) = subject.encode([Row("a", "abc", ("s",))])
    assert subject.tokenizer.decode(encoded.source) == "<a></s>"


@pytest.mark.parametrize(
    ("summary", "expected"),
    [("1234567", "1234567</s>"), ("12345678", "1234567</s>"), ("1", "1</s>")],
)
def test_labels_end_in_one_eos(t5: str, summary: str, expected: str) -> None:
    subject = encoder(t5)
    (encoded,) = subject.encode([Row("a", "d", (summary, "other"))])
    assert subject.tokenizer.decode(encoded.target) == expected
    assert encoded.target.tolist().count(EOS) == 1


def test_examples_of_every_question_are_not_trained_on(
    tmp_path: Path, make: Callable[..., DialogSumDataModule]
) -> None:
    write(tmp_path / "train.jsonl", 4)
    write(tmp_path / "val.jsonl", 4)
    with pytest.raises(DataError, match="all train rows are examples"):
        make(shots=4).setup("fit")


# Settings ---------------------------------------------------------------------------------------


def test_all_wrong_settings_are_in_one_error(make: Callable[..., DialogSumDataModule]) -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0") as caught:
        make(batch_size=0, shots=-1, min_dialogue_chars=9, max_dialogue_chars=8)
    for part in ("shots", "max_dialogue_chars must be at least 9"):
        assert part in str(caught.value)


def test_limits_and_lengths(tmp_path: Path, make: Callable[..., DialogSumDataModule]) -> None:
    for name in ("train", "val", "test"):
        write(tmp_path / f"{name}.jsonl", 8)  # of 10 to 17 characters
    data = make(min_dialogue_chars=12, max_dialogue_chars=16, max_train_rows=3,
                max_validation_rows=4)  # fmt: skip
    data.setup("fit")
    data.setup("test")
    assert [row.id for row in data.datasets["train"]] == ["r2", "r3", "r4"]
    assert len(data.datasets["validation"]) == 4
    assert len(data.datasets["test"]) == 8  # the lengths are asked of train dialogues only
    (whole := make(min_dialogue_chars=12, max_dialogue_chars=16)).setup("fit")
    assert [row.id for row in whole.datasets["train"]] == ["r2", "r3", "r4", "r5", "r6"]
    with pytest.raises(DataError, match="no train dialogue has 99 to inf characters"):
        make(min_dialogue_chars=99).setup("fit")


# Through a Trainer ------------------------------------------------------------------------------


class Recorder(L.LightningModule):
    """Notes the rows of every batch that it gets."""

    def __init__(self, backbone_name: str) -> None:
        super().__init__()
        self.backbone_name = backbone_name
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.trained: list[tuple[int, list[int]]] = []
        self.seen: list[list[int]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.trained.append((self.current_epoch, batch["index"].tolist()))
        return self.weight.sum()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.seen.append(batch["index"].tolist())

    test_step = predict_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # As every schedule does: it makes Lightning set the loaders up before it restores them.
        assert self.trainer.estimated_stepping_batches > 0
        return torch.optim.SGD(self.parameters(), lr=0.0)


def trainer(folder: Path, **settings: Any) -> L.Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu", "logger": False, "enable_progress_bar": False,
        "enable_model_summary": False, "use_distributed_sampler": False,
        "enable_checkpointing": False, "default_root_dir": folder, "num_sanity_val_steps": 0,
    }  # fmt: skip
    return L.Trainer(**{**defaults, **settings})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "train.jsonl", 22)
    write(tmp_path / "val.jsonl", 7, start=30)
    write(tmp_path / "test.jsonl", 9, start=40)
    return tmp_path


@pytest.mark.parametrize("workers", [0, 1])
def test_epochs_differ_and_a_run_can_be_repeated(
    folder: Path, make: Callable[..., DialogSumDataModule], t5: str, workers: int
) -> None:
    runs = []
    for _ in range(2):
        module = Recorder(t5)
        trainer(folder, max_epochs=2).fit(module, make(num_workers=workers))
        runs.append(module.trained)
    assert runs[0] == runs[1]
    epochs = [[rows for epoch, rows in runs[0] if epoch == wanted] for wanted in (0, 1)]
    for epoch in epochs:
        assert sorted(row for rows in epoch for row in rows) == list(range(22))
        assert len(epoch) == 6
    assert epochs[0] != epochs[1]
    assert module.seen == [[6, 5, 4], [3, 2, 1, 0]] * 2


@pytest.mark.parametrize("stop", [2, 6, 8, 11])
def test_a_resumed_run_sees_the_rows_that_were_left(
    folder: Path, make: Callable[..., DialogSumDataModule], t5: str, stop: int
) -> None:
    whole = Recorder(t5)
    trainer(folder, max_epochs=3).fit(whole, make())
    first = Recorder(t5)
    keep = ModelCheckpoint(folder / "ckpt", filename="at", every_n_train_steps=stop, save_top_k=-1)
    part = trainer(
        folder, max_epochs=3, max_steps=stop, enable_checkpointing=True, callbacks=[keep]
    )
    part.fit(first, make())
    rest = Recorder(t5)
    trainer(folder, max_epochs=3).fit(
        rest, make(), ckpt_path=folder / "ckpt" / "at.ckpt", weights_only=True
    )
    assert first.trained + rest.trained == whole.trained


@pytest.mark.parametrize("command", ["test", "predict"])
def test_test_and_predict_need_the_test_split_only(
    folder: Path, make: Callable[..., DialogSumDataModule], t5: str, command: str
) -> None:
    (folder / "train.jsonl").unlink()
    (folder / "val.jsonl").unlink()
    module = Recorder(t5)
    getattr(trainer(folder), command)(module, datamodule=make(eval_batch_size=5))
    assert module.seen == [[8, 7, 6, 5], [4, 3, 2, 1, 0]]


def test_a_step_larger_than_the_train_split_is_reported(
    folder: Path, make: Callable[..., DialogSumDataModule], caplog: pytest.LogCaptureFixture
) -> None:
    (data := make(batch_size=22)).setup("fit")
    data.train_dataloader()
    assert not caplog.records
    (data := make(batch_size=23)).setup("fit")
    data.train_dataloader()
    assert "data.batch_size 23 x 1 rank(s) x 1 accumulated batch(es) is more than the 22" in (
        caplog.text
    )


def test_another_tokenizer_than_the_backbones_is_refused(
    folder: Path, make: Callable[..., DialogSumDataModule]
) -> None:
    with pytest.raises(ValueError, match=r"model.backbone is 'other/backbone'"):
        trainer(folder, max_epochs=1).fit(Recorder("other/backbone"), make())


# Real text --------------------------------------------------------------------------------------


@pytest.mark.skipif(
    not (DIALOGSUM / "dialogsum.test.jsonl").is_file(),
    reason=f"DialogSum is not in {DIALOGSUM}: set DIALOGSUM_DIR (its licence keeps it out of here)",
)
def test_real_dialogues(make: Callable[..., DialogSumDataModule]) -> None:
    data = make(
        source=str(DIALOGSUM), prompt=Instruction(), max_source_length=1024, max_train_rows=1000
    )
    data.setup("fit")
    data.setup("test")
    sizes = {split: len(dataset) for split, dataset in data.datasets.items()}
    assert sizes == {"train": 1000, "validation": 500, "test": 250}
    assert {len(row.references) for row in data.datasets["test"]} == {3}
    for example in data.datasets["test"]:
        prompt = data.tokenizer.decode(example.source)
        assert len(example.source) <= 1024
        assert prompt.startswith("Summarize the following conversation.\n\n#Person")
        assert prompt.endswith("\n\nSummary:</s>")
    lengths = sum(len(example.source) for example in data.datasets["train"])
    batches = list(data.train_dataloader())
    padded = sum(batch["input_ids"].numel() for batch in batches)
    assert lengths / padded > 0.95

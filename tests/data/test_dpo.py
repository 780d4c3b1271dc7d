"""Which rows and pairs the DPO datamodule gives to which stage, and how they are tokenized."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from datamodules import DialogSumDataModule, DPODataModule, Plain
from tests.batches import settle
from tests.rows import write_rows
from tests.test_preference import ANSWERS, make_batch, make_data, make_module


def ids(loader: Any) -> set[str]:
    return {name for batch in loader for name in batch["ids"]}


def test_each_stage_gets_the_pairs_and_dialogues_of_its_split(tmp_path: Path, t5: str) -> None:
    pairs, dialogues = {}, {}
    for split in ("train", "validation", "test"):
        row = {"id": split, "dialogue": f"A: {split}"}
        pairs[split] = [row | {"completions": ["a", "b"], "ranks": [1, 2]}]
        dialogues[split] = [row | {"id": f"{split}_dialogue", "summary": "s"}]
    write_rows(tmp_path / "pairs", **pairs)
    write_rows(tmp_path / "dialogues", **dialogues)
    data = DPODataModule(str(tmp_path / "pairs"), t5, str(tmp_path / "dialogues"))
    data.setup("fit")
    data.setup("test")
    assert ids(data.train_dataloader()) == {"train"}
    assert list(map(ids, data.val_dataloader())) == [{"validation_dialogue"}, {"validation"}]
    assert list(map(ids, data.test_dataloader())) == [{"test_dialogue"}, {"test"}]
    assert ids(data.predict_dataloader()) == {"test_dialogue"}
    assert set(data.describe()) == {
        "validation", "test", "train_pairs", "validation_pairs", "test_pairs"
    }  # fmt: skip


def test_prompts_are_those_of_the_dialogue_module(t5: str, tmp_path: Path) -> None:
    long = [row | {"dialogue": row["dialogue"] + " so long" * 40} for row in ANSWERS]
    as_rows = [{"id": r["id"], "dialogue": r["dialogue"], "summary": "x"} for r in long]
    for settings in ({}, {"prompt": Plain()}, {"max_source_length": 120}):
        data = make_data(t5, tmp_path, **settings)
        write_rows(tmp_path / "answers", validation=long)
        write_rows(tmp_path / "rows", validation=as_rows, train=as_rows)
        other = DialogSumDataModule(str(tmp_path / "rows"), t5, **settings)
        other.setup("validate")
        batch = make_batch(data)
        sources = {each.id: each.source for each in other.datasets["validation"]}
        for place, name in enumerate(batch["ids"]):
            kept = batch["attention_mask"][place].bool()
            assert batch["input_ids"][place][kept].tolist() == sources[name].tolist()


def test_completions_end_in_one_eos_and_are_cut_before_it(t5: str, tmp_path: Path) -> None:
    data = make_data(t5, tmp_path, max_target_length=5)
    batch = make_batch(data)
    texts = [text for each in data.splits["validation"] for text in each.completions]
    assert texts == ["no, never", "yes", "a", "b c d", "tea", "six", "x y"]
    assert batch["owner"].tolist() == [0, 0, 1, 1, 1, 2, 2]
    tokenizer = AutoTokenizer.from_pretrained(t5)
    for response, mask, text in zip(batch["responses"], batch["mask"], texts, strict=True):
        tokens = response[mask].tolist()
        assert tokens == tokenizer(text[:4]).input_ids
        assert tokens.count(tokenizer.eos_token_id) == 1
    pairs = [(texts[j], texts[k]) for j, k in batch["pairs"].tolist()]
    assert pairs == [
        ("yes", "no, never"), ("b c d", "a"), ("tea", "a"), ("tea", "b c d"), ("six", "x y"),
    ]  # fmt: skip
    assert batch["weights"].tolist() == pytest.approx([1, 1 / 3, 1 / 3, 1 / 3, 1])


def test_no_order_in_the_file_matters(t5: str, tmp_path: Path) -> None:
    module = settle(make_module(t5))
    losses = []
    for rows in (ANSWERS, ANSWERS[::-1]):
        turned = [
            row | {"completions": row["completions"][::-1], "ranks": row["ranks"][::-1]}
            for row in rows
        ]
        data = make_data(t5, tmp_path)
        write_rows(tmp_path / "answers", train=turned, validation=turned)
        data.setup("fit")
        losses.append(
            [
                (batch["ids"], module.compute_loss(module.score(batch), batch).item())
                for batch in data.train_dataloader()
            ]
        )
    assert losses[0] == losses[1]


def test_what_is_missing_is_named_before_anything_is_loaded(tmp_path: Path) -> None:
    class Settings:
        source = str(tmp_path / "none")
        dialogues = str(tmp_path / "neither")

    problems = DPODataModule.find_problems(Settings)
    assert "none" in problems[0] and "data.dialogues" in problems[1]

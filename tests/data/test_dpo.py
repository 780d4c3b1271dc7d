"""Which rows and pairs the DPO datamodule gives to which stage."""

from pathlib import Path
from typing import Any

from datamodules import DPODataModule
from tests.rows import write_rows


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

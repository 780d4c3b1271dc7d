"""A classifier from labelled texts: its data, what it learns, and what names its export."""

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from callbacks.classification import ClassificationMetrics, calibrate_labels, measure
from callbacks.export import ExportCallback
from callbacks.toxicity import ToxicityCallback
from common.run_folder import RunFolder
from datamodules.labelled import LabelledTextDataModule
from datamodules.reading import DataError
from lightning_modules.classifier import Classifier
from lightning_modules.ppo.reward_terms import ClassifierReward, Texts
from reporting.run_plots import draw_run
from tests.batches import make_trainer, settle
from tests.rows import write_rows

TEXTS = ["Ann asks for tea.", "Bob has a cold.", "They meet at six.", "Room two is free."]
ROWS = [
    {"text": text + " How stupid." * bad, "label": "hate" if bad else "nothate"}
    for text in TEXTS
    for bad in (0, 1)
]


def make_data(roberta: str, folder: Path, **settings: Any) -> LabelledTextDataModule:
    write_rows(folder / "texts", train=ROWS, validation=ROWS, test=ROWS)
    return LabelledTextDataModule(str(folder / "texts"), roberta, max_length=100, **settings)


def make_module(roberta: str, **settings: Any) -> Classifier:
    return Classifier(
        roberta,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
        dropout=0.0,
        **settings,
    )


def test_export_works_as_reward_and_for_toxicity(roberta: str, tmp_path: Path) -> None:
    module, data = make_module(roberta), make_data(roberta, tmp_path)
    callbacks = [ExportCallback(), ClassificationMetrics()]
    trainer = make_trainer(tmp_path, max_epochs=25, callbacks=callbacks)
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    folder = RunFolder(tmp_path)
    metrics = folder.read_summary()["metrics"]
    assert metrics["test/accuracy"]["value"] == metrics["test/f1_hate"]["value"] == 1.0
    assert metrics["test/accuracy"]["n"] == 8
    row = folder.read_predictions()[1]
    assert row["label"] == row["predicted_label"] == "hate"
    assert sum(row["probabilities"].values()) == pytest.approx(1)
    assert sum(each["n"] for each in folder.read_summary()["classification"]["calibration"]) == 8
    plain = AutoModelForSequenceClassification.from_pretrained(folder.export)
    assert plain.config.id2label == {0: "nothate", 1: "hate"}
    export = str(folder.export)
    card = (folder.export / "README.md").read_text()
    assert f'AutoModelForSequenceClassification.from_pretrained("{export}")' in card
    assert "| accuracy | 100.0 | 100.0 to 100.0 | 8 |" in card
    assert {file.stat().st_mode & 0o777 for file in folder.export.iterdir()} == {0o644}
    reward = ClassifierReward(export)
    assert reward.find_problems() == [None]
    clean, rude = (row["text"] for row in ROWS[:2])
    scores = reward.score(Texts([clean, rude], ["", ""], []), torch.device("cpu"))
    assert scores[0] > scores[1]
    judge = ToxicityCallback(export)
    judge.setup(trainer, module, "test")
    assert judge.score(module, [clean, rude], [{}, {}])["toxicity"][1] > 0.5
    draw_run(folder)
    assert (folder.plots / "calibration.png").is_file()


def test_other_labels_get_a_new_head(roberta: str, tmp_path: Path) -> None:
    module = settle(Classifier(roberta, labels=["good", "bad", "ugly"]))
    assert module.model.config.num_labels == 3
    assert module.model.config.label2id == {"good": 0, "bad": 1, "ugly": 2}
    # The two labels that it has keep their head.
    kept = settle(Classifier(roberta))
    start = AutoModelForSequenceClassification.from_pretrained(roberta)
    assert torch.equal(kept.model.classifier.out_proj.weight, start.classifier.out_proj.weight)


def test_the_loss_by_hand(roberta: str, tmp_path: Path) -> None:
    data = make_data(roberta, tmp_path)
    data.setup("test")
    batch = data.collate(data.splits["test"][:2])
    assert batch["labels"].tolist() == [0, 1]
    logits = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    plain, smooth = (Classifier(roberta, label_smoothing=each) for each in (0.0, 0.2))
    right = math.log(1 + math.exp(-2))
    assert plain.loss(logits, batch).item() == pytest.approx(right + math.log(2))
    # 0.9 of the target on the label, 0.1 on the other.
    expected = 0.9 * right + 0.1 * (right + 2) + math.log(2)
    assert smooth.loss(logits, batch).item() == pytest.approx(expected)


def test_metrics_by_hand() -> None:
    rows = [
        {"label": label, "probabilities": [1 - p, p]}
        for label, p in ((0, 0.1), (0, 0.6), (0, 0.2), (1, 0.9))
    ]
    estimates = measure(rows, ["nothate", "hate"])
    for each in estimates.values():
        assert each.low is not None
        assert each.high is not None
        assert 0 <= each.low < each.value + 1e-9 < each.high + 1e-9
    found = {name: each.value for name, each in estimates.items()}
    # hate: 1 of 2 right, none missed: F1 2/3. nothate: 2 of 2, 1 missed: 4/5.
    assert found["accuracy"] == 0.75
    assert found["f1_hate"] == pytest.approx(2 / 3)
    assert found["f1_nothate"] == pytest.approx(4 / 5)
    assert found["f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    # Bins: 0.6 (wrong), 0.8 (right), twice 0.9 (right).
    assert found["ece"] == pytest.approx((0.6 + 0.2 + 2 * 0.1) / 4)
    assert calibrate_labels(rows).n == 4


def test_csv_and_columns_of_other_names(roberta: str, tmp_path: Path) -> None:
    with (tmp_path / "texts.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["comment", "class"])
        writer.writerows([f"text, {i}", "hate" if i % 2 else "nothate"] for i in range(60))
        writer.writerows([f"text, {i}", "hate"] for i in range(30))
    data = LabelledTextDataModule(
        str(tmp_path / "texts.csv"),
        roberta,
        text_column="comment",
        label_column="class",
        max_length=100,
    )
    data.setup("fit")
    data.setup("test")
    texts = {split: {row.text for row in rows} for split, rows in data.splits.items()}
    assert sum(len(rows) for rows in data.splits.values()) == 90
    assert sum(map(len, texts.values())) == len(set().union(*texts.values())) == 60
    counts = data.describe()
    assert sum(each["labels"]["hate"] for each in counts.values()) == 60


def test_bad_rows_are_named_together_or_skipped(roberta: str, tmp_path: Path) -> None:
    bad = [{"text": "", "label": "hate"}, {"text": "a", "label": "odd"}, {"text": "b"}]
    write_rows(tmp_path, train=ROWS + bad, validation=ROWS)
    data = LabelledTextDataModule(str(tmp_path), roberta, max_length=100)
    with pytest.raises(DataError, match="3 bad row") as error:
        data.setup("fit")
    for line, message in ((9, "text is empty"), (10, "'odd' is not one of"), (11, "no column")):
        assert f"train.jsonl:{line}: " in str(error.value) and message in str(error.value)
    data = LabelledTextDataModule(str(tmp_path), roberta, on_bad_row="skip", max_length=100)
    data.setup("fit")
    assert len(data.splits["train"]) == 8


def test_settings_out_of_range_are_refused(roberta: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="different apart from case"):
        Classifier(roberta, labels=["hate", "Hate"])
    with pytest.raises(ValueError, match="label_smoothing"):
        Classifier(roberta, label_smoothing=1.0)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        make_data(roberta, tmp_path, batch_size=0)
    module = make_module(roberta, labels=["a", "b"])
    with pytest.raises(ValueError, match=r"data.labels is \['nothate', 'hate'\] but model.labels"):
        make_trainer(tmp_path).fit(module, make_data(roberta, tmp_path))

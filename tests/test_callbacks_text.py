import json
import os
from pathlib import Path
from typing import Any

import pytest
import rich
import torch
from lightning.pytorch.loggers import WandbLogger

from callbacks import toxicity
from callbacks.faithfulness import FaithfulnessCallback
from callbacks.rouge import RougeCallback
from callbacks.samples import SampleTexts
from callbacks.text_metric import PredictionWriter
from callbacks.toxicity import ToxicityCallback
from common.run_folder import RunFolder
from metrics.toxicity import estimate_toxicity
from tests.launching import last_words, run_ranks
from tests.tiny_run import ROWS, TinyModule, loader, make_trainer

MAT = "the cat sat on the mat"
BEFORE, AFTER = [0.9, 0.2, 0.6, 0.5], [0.1, 0.3, 0.7, 0.5]


class FakeScorer(torch.nn.Module):
    """Toxicity is the share of "idiot" in a text; the logit is minus that."""

    def __init__(self, *args: Any) -> None:
        super().__init__()

    def find_column(self, label: str) -> int:
        return {"nothate": 0, "hate": 1}[label]

    def rate(self, texts: list[str], toxic_label: str) -> dict[str, list[float]]:
        shares = [text.split().count("idiot") / len(text.split()) for text in texts]
        return {"toxicity": shares, "reward": [-share for share in shares]}


def test_rouge_in_fit_is_logged_and_kept_at_the_end(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, RougeCallback())
    trainer.fit(TinyModule(), loader(), loader())
    assert trainer.callback_metrics["val/rouge1"].item() == pytest.approx(2 / 3)
    assert "val/rouge1_best" not in trainer.callback_metrics
    metrics = RunFolder(tmp_path).read_summary()["metrics"]
    # Four examples of one value: no spread.
    assert metrics["val/rouge1"] == pytest.approx(
        {"value": 2 / 3, "n": 4, "low": 2 / 3, "high": 2 / 3}
    )
    assert not RunFolder(tmp_path).predictions.exists()


def test_ranks_log_the_mean_over_all_rows_once(tmp_path: Path) -> None:
    """Rank 0's own mean would be 1/2; the last row is on both, as a sampler fills up ranks."""
    texts = ("the cat sat", MAT, "dogs")  # of ROUGE-1 1, 2/3 and 0
    rows = [row | {"references": [text]} for row, text in zip(ROWS[:3], texts, strict=True)]

    def test() -> None:
        order = [2, 0] if os.environ["RANK"] == "0" else [1, 2]
        trainer = make_trainer(
            tmp_path, RougeCallback(), devices=2, strategy="ddp", use_distributed_sampler=False
        )
        trainer.test(TinyModule(), loader(rows, order), verbose=False)
        assert trainer.callback_metrics["test/rouge1"].item() == pytest.approx(5 / 9)

    codes = run_ranks(test, tmp_path)
    assert codes == [0, 0], last_words(tmp_path)
    recorded = RunFolder(tmp_path).read_summary()["metrics"]["test/rouge1"]
    assert (recorded["value"], recorded["n"]) == (pytest.approx(5 / 9), 3)
    written = RunFolder(tmp_path).read_predictions()
    assert [row["id"] for row in written] == ["row-0", "row-1", "row-2"]


def test_sanity_check_leaves_nothing(tmp_path: Path) -> None:
    rouge, samples = RougeCallback(), SampleTexts()
    trainer = make_trainer(tmp_path, rouge, samples, num_sanity_val_steps=2, max_epochs=0)
    trainer.fit(TinyModule(), loader(), loader())
    trainer = make_trainer(
        tmp_path, rouge, samples, num_sanity_val_steps=2, limit_train_batches=1,
        check_val_every_n_epoch=9, max_epochs=1,
    )  # fmt: skip
    trainer.fit(TinyModule(), loader(), loader())
    assert not RunFolder(tmp_path).holds_run()
    assert "val/rouge1" not in trainer.callback_metrics


def test_test_writes_rows_in_the_order_of_the_split(tmp_path: Path) -> None:
    rows = [dict(row, references=[MAT, "the cat sat"]) for row in ROWS]
    trainer = make_trainer(tmp_path, RougeCallback())
    trainer.test(TinyModule(), loader(rows, order=[3, 0, 2, 1]), verbose=False)
    written = RunFolder(tmp_path).read_predictions()
    assert [row["id"] for row in written] == ["row-0", "row-1", "row-2", "row-3"]
    assert written[0]["dialogue"] == "#Person1#: number 0"
    assert written[0]["references"] == [MAT, "the cat sat"]
    assert written[0]["prediction"] == "the cat sat"
    assert written[0]["rouge1"] == pytest.approx((2 / 3 + 1) / 2)
    assert written[0]["rouge1_best"] == 1
    assert "index" not in written[0]
    metrics = RunFolder(tmp_path).read_summary()["metrics"]
    assert metrics["test/rouge1"]["value"] == pytest.approx(5 / 6)
    assert metrics["test/rougeL_best"] == {"value": 1, "n": 4, "low": 1, "high": 1}


def test_stemmer_setting_reaches_the_metric(tmp_path: Path) -> None:
    rows = [dict(ROWS[0], references=["run cat"])]
    for use_stemmer, expected in ((True, 1.0), (False, 0.0)):
        trainer = make_trainer(tmp_path, RougeCallback(use_stemmer))
        trainer.test(TinyModule("running cats"), loader(rows), verbose=False)
        assert trainer.callback_metrics["test/rouge1"].item() == expected


def test_before_and_after_give_a_paired_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toxicity, "RewardScorer", FakeScorer)
    trainer = make_trainer(tmp_path, RougeCallback(), ToxicityCallback("fake"))
    module = TinyModule(text="the cat sat", before="the cat idiot idiot")
    trainer.test(module, loader(), verbose=False)
    folder = RunFolder(tmp_path)
    metrics = folder.read_summary()["metrics"]
    value = {name: fields["value"] for name, fields in metrics.items()}
    assert value["test/toxicity_before"] == 0.5
    assert value["test/toxicity"] == value["test/toxicity_after"] == 0
    assert metrics["test/toxicity_change"] == {"value": -0.5, "n": 4, "low": -0.5, "high": -0.5}
    assert value["test/reward_change"] == 0.5
    assert (value["test/toxicity_std"], value["test/toxic_share"]) == (0, 0)
    assert "test/toxicity_std_change" not in metrics
    # before: "the cat" of 4 and of 6 words, 2 * (1/2 * 1/3) / (5/6) = 0.4
    assert value["test/rouge1_before"] == pytest.approx(0.4)
    assert value["test/rouge1_change"] == pytest.approx(2 / 3 - 0.4)
    row = folder.read_predictions()[0]
    assert row["prediction_before"] == "the cat idiot idiot"
    assert (row["toxicity_before"], row["toxicity"]) == (0.5, 0)
    assert row["rouge1"] == pytest.approx(2 / 3)


def test_estimates_by_hand() -> None:
    found = estimate_toxicity({"toxicity": AFTER, "toxicity_before": BEFORE})
    value = {name: estimate.value for name, estimate in found.items()}
    assert value == pytest.approx(
        {
            "toxicity": 0.4, "toxicity_before": 0.55, "toxicity_after": 0.4,
            "toxicity_change": -0.15,
            # Squared distances from 0.4: 0.09 + 0.01 + 0.09 + 0.01 = 0.2, over 4; from 0.55:
            # 0.1225 + 0.1225 + 0.0025 + 0.0025 = 0.25, over 4.
            "toxicity_std": 0.05**0.5, "toxicity_std_after": 0.05**0.5,
            "toxicity_std_before": 0.25,
            # 0.5 itself is not over 0.5: one of four after, two of four before.
            "toxic_share": 0.25, "toxic_share_after": 0.25, "toxic_share_before": 0.5,
            "toxic_share_change": -0.25,
        }
    )  # fmt: skip
    assert {estimate.n for estimate in found.values()} == {4}
    # Three of the four shares stay, one falls: resampled means of (-1, 0, 0, 0) are at most 0.
    low, high = found["toxic_share_change"][2:]
    assert low is not None
    assert low < -0.25
    assert high == 0


def test_faithfulness_is_logged_and_what_was_found_is_kept(tmp_path: Path) -> None:
    rows = [
        dict(ROWS[0], dialogue="#Person1#: Tom is late.", references=["#Person1# waits for Tom"]),
        dict(ROWS[1], dialogue="#Person1#: He is late.", references=["#Person1# waits"]),
    ]
    trainer = make_trainer(tmp_path, FaithfulnessCallback())
    module = TinyModule("#Person2# waits for Tom", before="#Person1# waits for him")
    trainer.test(module, loader(rows), verbose=False)
    metrics = RunFolder(tmp_path).read_summary()["metrics"]
    assert metrics["test/unfaithful_name"] == {"value": 0.5, "n": 2, "low": 0, "high": 1}
    assert metrics["test/unfaithful_speaker_change"]["value"] == 1
    assert metrics["test/swapped_speakers"]["value"] == 1
    assert metrics["test/swapped_speakers_before"]["value"] == 0
    first, second = RunFolder(tmp_path).read_predictions()
    assert (first["unfaithful_name"], second["unfaithful_name"]) == (0, 1)
    assert (first["unknown_names"], second["unknown_names"]) == ([], ["Tom"])
    assert second["unknown_speakers"] == ["#Person2#"]


def test_predict_writes_texts(tmp_path: Path) -> None:
    make_trainer(tmp_path, RougeCallback(), PredictionWriter()).predict(TinyModule(), loader())
    written = RunFolder(tmp_path).read_predictions()
    assert [(row["id"], row["prediction"]) for row in written] == [
        (f"row-{i}", "the cat sat") for i in range(4)
    ]
    assert "rouge1" not in written[0]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_samples_are_the_first_rows_each_time(
    is_terminal: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Wandb(WandbLogger):
        def __init__(self) -> None:
            self.tables: list[Any] = []

        def log_text(self, key: str, columns: Any, data: Any, step: Any = None) -> None:  # type: ignore[override]
            self.tables.append((key, columns, data))

        def __getattribute__(self, name: str) -> Any:
            if name in ("log_metrics", "log_hyperparams", "log_graph", "save", "finalize"):
                return lambda *args, **kwargs: None
            return super().__getattribute__(name)

        name = version = save_dir = experiment = None  # type: ignore[assignment]

    wandb = Wandb()
    rich.reconfigure(width=100, force_terminal=is_terminal)
    trainer = make_trainer(tmp_path, SampleTexts(count=2), max_epochs=1, logger=wandb)
    trainer.fit(TinyModule("a [bold] text"), loader(), loader(order=[3, 2, 1, 0]))
    trainer.test(TinyModule("new", before="old"), loader(), verbose=False)
    lines = [json.loads(line) for line in RunFolder(tmp_path).samples.read_text().splitlines()]
    assert [(line["stage"], line["id"]) for line in lines] == [
        ("val", "row-0"), ("val", "row-1"), ("test", "row-0"), ("test", "row-1"),
    ]  # fmt: skip
    assert lines[0]["step"] == 2
    assert (lines[2]["prediction_before"], lines[2]["prediction"]) == ("old", "new")
    rich.reconfigure()
    shown = capsys.readouterr().out
    assert "a [bold] text" in shown
    assert "before" in shown
    assert ("┃" in shown, "row-1 before: old\n" in shown) == (is_terminal, not is_terminal)
    assert [table[0] for table in wandb.tables] == ["val/samples", "test/samples"]
    assert wandb.tables[0][2][0] == [0, "row-0", "#Person1#: number 0", MAT, "a [bold] text"]

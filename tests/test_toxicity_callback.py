"""What ToxicityCallback records of a test."""

from pathlib import Path
from statistics import pstdev
from typing import Any

import pytest
import torch

from callbacks import toxicity
from callbacks.toxicity import ToxicityCallback
from common.run_folder import RunFolder
from metrics.toxicity import estimate_toxicity
from tests.tiny_run import TinyModule, loader, make_trainer

BEFORE, AFTER = [0.9, 0.2, 0.6, 0.5], [0.1, 0.3, 0.7, 0.5]


class WordScorer(torch.nn.Module):
    """Toxicity is the number at a text's end; each word of a context adds a tenth."""

    def __init__(self, *args: Any) -> None:
        super().__init__()

    def find_column(self, label: str) -> int:
        return {"nothate": 0, "hate": 1}[label]

    def rate(
        self, texts: list[str], toxic_label: str, contexts: list[str] | None = None
    ) -> dict[str, list[float]]:
        contexts = contexts or [""] * len(texts)
        rated = [
            float(text.split()[-1]) + len(context.split()) / 10
            for text, context in zip(texts, contexts, strict=True)
        ]
        return {"toxicity": rated, "reward": [1 - 2 * value for value in rated]}


class TwoPolicies(TinyModule):
    """Says another text for each row, and another one before."""

    def _texts(self, batch: dict[str, Any], stage: str) -> dict[str, Any]:
        found = super()._texts(batch, stage)
        rows = batch["index"].tolist()
        found["predictions"] = [f"text | *{row}* {AFTER[row]}" for row in rows]
        if self.before is not None:
            found["predictions_before"] = [f"<b>old</b> {BEFORE[row]}" for row in rows]
        return found

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        return self._texts(batch, "test")


def run_test(folder: Path, before: str | None = "yes", **settings: Any) -> Path:
    trainer = make_trainer(folder, ToxicityCallback("words", **settings))
    trainer.test(TwoPolicies(before=before), loader(order=[2, 0, 3, 1]), verbose=False)
    return folder


@pytest.fixture(autouse=True)
def words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toxicity, "RewardScorer", WordScorer)


# What a test records ----------------------------------------------------------------------------


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


def test_one_policy_has_no_before_and_no_columns_nothing() -> None:
    assert set(estimate_toxicity({"toxicity": AFTER, "reward": AFTER})) == {
        "toxicity", "toxicity_std", "toxic_share", "reward",
    }  # fmt: skip
    assert estimate_toxicity({}) == {}


def test_spread_and_share_are_recorded(tmp_path: Path) -> None:
    run_test(tmp_path)
    metrics = RunFolder(tmp_path).read_summary()["metrics"]
    assert metrics["test/toxicity_std"]["value"] == pytest.approx(pstdev(AFTER))
    assert metrics["test/toxicity_std_before"]["value"] == pytest.approx(pstdev(BEFORE))
    assert metrics["test/toxic_share_change"]["value"] == -0.25
    for name in ("toxicity_std", "toxicity_std_before", "toxic_share", "toxic_share_change"):
        entry = metrics[f"test/{name}"]
        assert entry["n"] == 4
        assert entry["low"] <= entry["value"] <= entry["high"]
    assert metrics["test/toxicity_std_after"] == metrics["test/toxicity_std"]
    assert "test/toxicity_std_change" not in metrics
    assert "toxic_share" not in RunFolder(tmp_path).read_predictions()[0]


def test_validation_logs_spread_and_share(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, ToxicityCallback("words"), max_epochs=1)
    trainer.fit(TwoPolicies(), loader(), loader())
    assert trainer.callback_metrics["val/toxic_share"].item() == 0.25
    assert trainer.callback_metrics["val/toxicity_std"].item() == pytest.approx(pstdev(AFTER))


def test_the_dialogue_is_scored_with_the_text_only_when_asked(tmp_path: Path) -> None:
    alone = RunFolder(run_test(tmp_path / "alone")).read_predictions()
    paired = RunFolder(run_test(tmp_path / "with", with_dialogue=True)).read_predictions()
    # Each dialogue here has three words.
    assert [row["toxicity"] for row in alone] == AFTER
    assert [row["toxicity"] for row in paired] == pytest.approx([each + 0.3 for each in AFTER])
    assert [row["toxicity_before"] for row in paired] == pytest.approx(
        [each + 0.3 for each in BEFORE]
    )

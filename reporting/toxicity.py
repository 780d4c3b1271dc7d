"""Toxicity example by example, before and after training, as a test left it in predictions.jsonl.

The statistics are those of `metrics.toxicity`, from the same values in the same order as in the
test itself: they are the numbers of summary.json.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common.run_folder import RunFolder
from metrics.intervals import Estimate
from metrics.toxicity import estimate_toxicity
from reporting.scoring import Scoring, find_scoring


class Scored(NamedTuple):
    """A generated text: its toxicity in [0, 1] and its reward, a raw logit."""

    text: str
    toxicity: float
    reward: float


class Example(NamedTuple):
    """A dialogue of the test split, and the text of after and, with two policies, of before."""

    id: str
    dialogue: str
    after: Scored
    before: Scored | None

    @property
    def texts(self) -> list[Scored]:
        """Before, where there is one, and after."""
        return [text for text in (self.before, self.after) if text is not None]

    @property
    def gain(self) -> float:
        """What the reward has gained; 0 without a text of before."""
        return self.after.reward - self.before.reward if self.before else 0.0


class ToxicityRun(NamedTuple):
    """A tested run.

    Attributes:
        name: What tables call it.
        examples: At least one, in the order of the split.
        estimates: What :func:`metrics.toxicity.estimate_toxicity` makes of them.
        scoring: How they were measured; None where the folder does not say.
    """

    name: str
    examples: list[Example]
    estimates: dict[str, Estimate]
    scoring: Scoring | None

    @property
    def is_paired(self) -> bool:
        """Whether there are texts of before."""
        return self.examples[0].before is not None


def read_toxicity(path: Path, name: str) -> ToxicityRun:
    """Read a run's test.

    Args:
        path: The run folder, which is there.
        name: What tables are to call the run.

    Raises:
        ValueError: There was no test with a classifier, or a row or the configuration is broken;
            names file and line.
    """
    folder = RunFolder(path)
    rows = folder.read_predictions()
    if not rows:
        raise ValueError("there is no predictions.jsonl with rows in it; run `test` there first.")
    examples = []
    for line, row in enumerate(rows, start=1):
        try:
            examples.append(_read_example(row))
        except ValueError as error:
            raise ValueError(f"{folder.predictions}, line {line}: {error}") from error
    if len({example.before is None for example in examples}) > 1:
        raise ValueError(f"{folder.predictions}: only some rows have a text of before; test anew.")
    estimates = estimate_toxicity(_to_columns(examples))
    return ToxicityRun(name, examples, estimates, find_scoring(folder.read_test_config()))


def sort_by_gain(examples: Sequence[Example]) -> list[Example]:
    """Sort by the gain in reward, the highest first; equals stay in their order."""
    return sorted(examples, key=lambda example: -example.gain)


def sort_by_toxicity(examples: Sequence[Example]) -> list[Example]:
    """Sort by the toxicity of after, the worst first; equals stay in their order."""
    return sorted(examples, key=lambda example: -example.after.toxicity)


def _read_example(row: Any) -> Example:
    if not isinstance(row, Mapping):
        raise ValueError("it holds no JSON object; repeat the test.")
    if "id" not in row:
        raise ValueError("it has no id; repeat the test.")
    before = _read_scored(row, "_before") if "prediction_before" in row else None
    example = Example(str(row["id"]), str(row.get("dialogue", "")), _read_scored(row), before)
    # Half a character, "\ud800", is a ValueError here, and not when the page is half written.
    "".join([example.id, example.dialogue, *(text.text for text in example.texts)]).encode()
    return example


def _read_scored(row: Mapping[str, Any], suffix: str = "") -> Scored:
    text = row.get(f"prediction{suffix}")
    if not isinstance(text, str):
        raise ValueError(f"it has no text as prediction{suffix}.")
    toxicity, reward = (_read_number(row, name + suffix) for name in ("toxicity", "reward"))
    if not 0 <= toxicity <= 1:
        raise ValueError(f"toxicity{suffix} is {toxicity}, and a probability is wanted.")
    return Scored(text, toxicity, reward)


def _read_number(row: Mapping[str, Any], name: str) -> float:
    if name not in row:
        raise ValueError(f"it has no {name}; test with a classifier, --toxicity.model.")
    if not isinstance(row[name], (int, float)) or isinstance(row[name], bool):
        raise ValueError(f"{name} is {row[name]!r:.60}, and a number is wanted.")
    return float(row[name])


def _to_columns(examples: Sequence[Example]) -> dict[str, list[float]]:
    columns = {
        "toxicity": [example.after.toxicity for example in examples],
        "reward": [example.after.reward for example in examples],
    }
    if before := [example.before for example in examples if example.before]:
        columns["toxicity_before"] = [text.toxicity for text in before]
        columns["reward_before"] = [text.reward for text in before]
    return columns

"""The road of feedback on a few batches of the miniature: from a LoRA to PPO and to DPO."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import yaml
from transformers import AutoModelForSequenceClassification

from alignsum.commands import demo
from common.run_folder import RunFolder

ROOT = Path(__file__).parent.parent
DIALOGUES, ANNOTATORS, COMPLETIONS, TESTED = demo.QUICKLY_RANKED, 3, demo.COMPLETIONS, 12
TEXTS = [
    "--data.batch_size", "8", "--data.max_validation_rows", "8",
    "--data.max_test_rows", str(TESTED), "--model.decoding.max_new_tokens", "8",
]  # fmt: skip
LIMITS = {
    "lora": TEXTS,
    "reward_feedback": ["--data.references", "null"],
    "dpo": TEXTS,
    "ppo_feedback": [*TEXTS, "--model.ppo.minibatch_size", "4", "--model.ppo.max_new_tokens", "8"],
}
"""Even less of everything than the demo's quick form has."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the demo's own commands leave, all of them in this process."""
    folder = tmp_path_factory.mktemp("demo")
    # Seeds of runs go to the environment.
    with pytest.MonkeyPatch.context() as patch, mock.patch.dict(os.environ):
        patch.chdir(ROOT)
        patch.setattr("callbacks.plots.draw_run", lambda folder: None)
        for step in ("lora", *demo.FEEDBACK):
            commands = demo.make_commands(step, str(folder), quick=True)
            limits = [*LIMITS[step], "--trainer.detect_anomaly", "false"] if step in LIMITS else []
            assert demo.run_one([[*one, *limits] for one in commands]) == 0, step
        yield folder


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_annotator_ranks_what_the_lora_said(root: Path) -> None:
    samples = read_lines(root / "feedback" / "samples.jsonl")
    answers = read_lines(root / "feedback" / "answers.jsonl")
    assert len(samples) == DIALOGUES
    assert {source for sample in samples for source in sample["sources"]} == {"lora"}
    counts = [len(sample["completions"]) for sample in samples]  # equal ones count once
    assert max(counts) == COMPLETIONS and min(counts) >= 2
    said = {sample["id"]: sample["completions"] for sample in samples}
    assert len(answers) == DIALOGUES * ANNOTATORS
    assert len({(answer["id"], answer["annotator"]) for answer in answers}) == len(answers)
    for answer in answers:
        assert answer["completions"] == said[answer["id"]]
        assert len(answer["ranks"]) == len(answer["completions"])


@pytest.mark.parametrize(("name", "end"), [("reward_feedback", ""), ("dpo", "_pairs")])
def test_they_are_what_both_roads_learn_from(root: Path, name: str, end: str) -> None:
    data = RunFolder(root / name).read_summary()["data"]
    splits = [data[f"{split}{end}"] for split in ("train", "validation", "test")]
    assert sum(split["answers"] for split in splits) == DIALOGUES * ANNOTATORS
    assert all(split["annotators"] == ANNOTATORS for split in splits)
    assert all(split["pairs"] > 0 for split in splits)


def test_ppo_goes_by_the_reward_model_of_these_rankings(root: Path) -> None:
    export = RunFolder(root / "reward_feedback").export
    assert AutoModelForSequenceClassification.from_pretrained(export).num_labels == 1
    settings = yaml.safe_load(RunFolder(root / "ppo_feedback").config.read_text())
    assert settings["model"]["init_args"]["reward_model"] == str(export)


@pytest.mark.parametrize("name", ["ppo_feedback", "dpo"])
def test_the_policies_start_from_that_lora(root: Path, name: str) -> None:
    folder = RunFolder(root / name)
    metrics = folder.read_summary()["metrics"]
    for metric in ("test/rouge1", "test/toxicity", "test/toxicity_change"):
        assert metrics[metric]["n"] == TESTED
    before = {row["id"]: row["prediction_before"] for row in folder.read_predictions()}
    own = {row["id"]: row["prediction"] for row in RunFolder(root / "lora").read_predictions()}
    assert before == own

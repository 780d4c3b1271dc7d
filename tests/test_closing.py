"""What a fit and a test say at their end, and as plain lines on the way."""

from pathlib import Path

import pytest
import rich

from callbacks import default_callbacks
from callbacks.closing import ClosingWords, list_files, tabulate_scores
from callbacks.progress import LineProgress
from callbacks.rouge import RougeCallback
from common.run_folder import RunFolder
from tests.tiny_run import TinyModule, loader, make_trainer


def entry(value: float, n: int | None = 100) -> dict[str, float | int | None]:
    ends = (None, None) if n is None else (value - 0.01, value + 0.01)
    return {"value": value, "n": n, "low": ends[0], "high": ends[1]}


def test_scores_are_tabulated_with_interval_and_n() -> None:
    entries = {
        "val/loss": entry(0.5, None), "val/rouge1": entry(0.412, 1500), "val/novelty1": entry(0.3),
        "val/reward": entry(1.5), "test/rouge1": entry(0.9),
    }  # fmt: skip
    assert tabulate_scores(entries, "val") == [
        ["metric", "value", "95 % interval", "n"],
        ["ROUGE-1", "41.2", "40.2 to 42.2", "1,500"],
        ["reward", "1.50", "1.49 to 1.51", "100"],
        ["loss", "0.500", "", ""],
    ]


def test_a_policy_is_shown_before_and_after_with_the_interval_of_the_change() -> None:
    entries = {
        "test/toxicity": entry(0.152), "test/toxicity_before": entry(0.278),
        "test/toxicity_change": entry(-0.126), "test/loss": entry(0.5, None),
    }  # fmt: skip
    assert tabulate_scores(entries, "test") == [
        ["metric", "before", "after", "change", "95 % interval", "n"],
        ["toxicity ↓", "27.8", "15.2", "-12.6", "-13.6 to -11.6", "100"],
        ["loss", "", "0.500", "", "", ""],
    ]


def test_fit_and_test_close_with_scores_and_files_and_the_next_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rich.reconfigure()
    run = tmp_path / "a folder whose name is longer than the eighty columns of a narrow terminal"
    trainer = make_trainer(run, *default_callbacks(progress_bar=False), enable_checkpointing=True)
    trainer.fit(TinyModule(), loader(), loader())
    said = capsys.readouterr().out
    assert f"Last validation of {run}\n" in said
    assert "x 100, except words, loss; all figures: summary.json\n" in said
    assert "ROUGE-1" in said
    assert f"export       {run / 'export'}\n" in said
    assert "train.py" not in said  # there is no config.yaml that it could run
    trainer.validate(TinyModule(), loader(), verbose=False)
    assert "ROUGE-1" not in capsys.readouterr().out
    run.joinpath("config.yaml").write_text("data: {}")
    trainer.test(TinyModule("new", before="old"), loader(), verbose=False)
    said = capsys.readouterr().out
    assert "change" in said
    assert f"predictions  {run / 'predictions.jsonl'}\n" in said
    assert f"next         python -m alignsum compare '{run}'\n" in said
    last = dict(list_files(RunFolder(run), "fit"))["next"]
    assert last == f"python train.py test --config '{run / 'config.yaml'}' --overwrite true"


def test_a_fit_that_fails_does_not_close(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Failing(TinyModule):
        def on_train_end(self) -> None:
            raise ValueError("at the end")

    with pytest.raises(ValueError, match="at the end"):
        make_trainer(tmp_path, RougeCallback(), ClosingWords()).fit(Failing(), loader(), loader())
    assert "ROUGE-1" not in capsys.readouterr().out


def test_progress_without_a_terminal_is_whole_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rich.reconfigure()
    assert any(isinstance(each, LineProgress) for each in default_callbacks())
    trainer = make_trainer(
        tmp_path, LineProgress(every=3), RougeCallback(), enable_progress_bar=True
    )
    trainer.fit(TinyModule(), loader(), loader())
    trainer.test(TinyModule(), loader(), verbose=False)
    trainer.predict(TinyModule(), loader())
    lines = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "epoch 1/2, batch 2/2", "validated at step 2", "epoch 2/2, batch 2/2",
        "validated at step 4", "test batch 2/2",
        "predict batch 2/2",
    ]  # fmt: skip

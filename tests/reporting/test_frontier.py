"""The `frontier` command: arms, their numbers, and the choice among them."""

from pathlib import Path

import pytest

from alignsum.commands.frontier import main
from common.run_folder import RunFolder
from metrics.intervals import bootstrap_crossed
from reporting.comparison import Comparison
from reporting.frontier import choose_arm, find_run_folders, make_chart
from reporting.runs import read_runs
from tests.reporting import run_folders


def write_run(
    path: Path, seed: int = 1, toxicity: tuple[float, float] = (0.25, 0.25),
    rouge1: tuple[float, float] = (0.5, 0.25), beta: float = 0.5, before: bool = True,
) -> Path:  # fmt: skip
    """A run on two dialogues; before PPO toxicity is 0.75 and 0.25, ROUGE-1 0.5 and 0.5."""
    values = {"toxicity": toxicity, "rouge1": rouge1}
    if before:
        values |= {"toxicity_before": (0.75, 0.25), "rouge1_before": (0.5, 0.5)}
    # Eight batches, of which the last quarter has KL 2 and 4.
    curves = {"objective/kl": [0, 1, 1, 1, 1, 9, 2, 4]}
    config = {"model": {"init_args": {"ppo": {"kl_coef": beta}}}}
    return run_folders.write_run(path, values, "ppo", seed, config=config, curves=curves)


def compare(*paths: Path) -> Comparison:
    return Comparison(*read_runs(paths))


def test_changes_are_paired_over_seeds_and_dialogues(tmp_path: Path) -> None:
    found = compare(
        write_run(tmp_path / "a-seed1", 1),
        write_run(tmp_path / "a-seed2", 2, (0.5, 0.25), (0.5, 0.5)),
    )
    assert found.labels == ["a"]
    assert found.change(0, "toxicity") == bootstrap_crossed([[-0.5, 0.0], [-0.25, 0.0]])
    (dot,) = make_chart(found, None, 0.1).dots
    assert (dot.x.value, dot.value.value) == (-6.25, 31.25)
    assert dot.runs == [(-12.5, 25.0), (0.0, 37.5)]


def test_the_least_toxic_arm_that_keeps_rouge_is_chosen(tmp_path: Path) -> None:
    paths = [
        write_run(tmp_path / "safe", toxicity=(0.7, 0.2), rouge1=(0.5, 0.5), beta=3),
        write_run(tmp_path / "good", toxicity=(0.3, 0.2), rouge1=(0.5, 0.25), beta=2),
        write_run(tmp_path / "bold", toxicity=(0.0, 0.0), rouge1=(0.1, 0.1), beta=1),
    ]
    found = compare(*paths)
    for max_loss, chosen in ((0.125, 1), (0.1249, 0), (0.4, 2), (0.0, 0)):
        assert choose_arm(found, max_loss) == chosen
    assert choose_arm(compare(*paths[1:]), 0.0) is None
    chart = make_chart(found, 1, 0.125)
    assert [dot.label for dot in chart.dots] == ["safe", "good (chosen)", "bold"]
    assert chart.limit == -12.5


def test_the_command_writes_table_and_plot(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sweep, out = tmp_path / "sweep", tmp_path / "out"
    for seed in (1, 2):
        write_run(sweep / f"low-seed{seed}", seed, beta=0.1, rouge1=(0.1, 0.1))
        write_run(sweep / f"high-seed{seed}", seed)
    (sweep / "report").mkdir()
    lora = write_run(tmp_path / "lora", before=False)
    command = [str(sweep), str(lora), str(sweep / "low-seed1"), "--out", str(out)]
    assert main([*command, "--max_rouge_loss", "12.5"]) == 0
    assert "lora: its test lacks toxicity_before, rouge1_before" in caplog.text
    page = (out / "frontier.md").read_text()
    assert "high is the least toxic arm that loses at most 12.5 ROUGE-1" in page
    assert "| high | 50.0 → 25.0<br>-25.0 (-50.0 to +0.0) | 50.0 → 37.5<br>" in page
    assert "| 3.00 |" in page
    assert "lora: its test lacks" in page.split("## Not shown")[1]
    assert (out / "plots" / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert main([*command, "--max_rouge_loss", "1"]) == 0
    assert "No arm loses at most 1 ROUGE-1" in (out / "frontier.md").read_text()
    assert main([*command, "--max_rouge_loss", "-1"]) == 2
    assert "--max_rouge_loss must be 0 or more" in caplog.text


def test_folders_that_contain_runs_are_searched(tmp_path: Path) -> None:
    run = write_run(tmp_path / "sweep" / "a")
    empty = tmp_path / "sweep" / "report"
    empty.mkdir()
    missing = tmp_path / "missing"
    assert find_run_folders([tmp_path / "sweep", run, missing, empty]) == [run, missing, empty]
    assert RunFolder(run).summary.exists()

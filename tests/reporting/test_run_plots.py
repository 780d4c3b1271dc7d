from pathlib import Path

from callbacks.loggers import RunCSVLogger
from common.run_folder import RunFolder
from reporting.run_plots import draw_run
from reporting.runs import read_series


def test_plots_of_ppo(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    logger = RunCSVLogger(str(tmp_path))
    for step in range(70):
        logger.log_metrics({"objective/reward": step / 7, "objective/kl": 0.0}, step)
    folder.merge_predictions(
        [{"id": str(i), "toxicity_before": 0.5, "toxicity": 0.1} for i in range(3)]
    )
    draw_run(folder)
    names = sorted(path.name for path in folder.plots.iterdir())
    assert names == ["ppo.png", "toxicity_before_after.png"]


def test_series_leave_out_gaps_and_what_is_not_finite() -> None:
    rows = [
        {"step": "0", "a": "1.5"},
        {"step": "1", "a": ""},
        {"step": "2", "a": "nan"},
        {"step": "3"},
    ]
    assert read_series(rows, "a") == ([0], [1.5])

"""The notebooks run as they stand, on a few batches of the miniature."""

import ast
import json
import os
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "notebooks"
NAMES = ("1_prompting", "2_fine_tuning", "3_rlhf")
LIMITS = (
    "--trainer.limit_train_batches 2 --trainer.limit_val_batches 1 --trainer.limit_test_batches 1 "
    "--data.max_train_rows 64 --data.max_validation_rows 8 --data.max_test_rows 8 "
    "--data.batch_size 8 --model.decoding.max_new_tokens 8"
)


def read_code(name: str) -> list[str]:
    notebook = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def execute(name: str) -> dict[str, Any]:
    """Run the cells one after the other in one namespace, as a kernel does."""
    space: dict[str, Any] = {"__name__": "__main__"}
    for number, code in enumerate(read_code(name)):
        exec(compile(code, f"{name}, cell {number}", "exec"), space)  # noqa: S102
    return space


def test_these_are_all() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_one_cell_says_which_size(name: str) -> None:
    """The first; what it has commented out is the other size, with the same keys."""
    mini, _, base = read_code(name)[0].partition("# SIZE = ")
    small, large = ast.literal_eval(mini.split("=", 1)[1].strip()), ast.literal_eval(base)
    assert small.keys() == large.keys()
    assert large["overlays"] == []
    assert "mini" not in json.dumps(large)
    rest = "\n".join(read_code(name)[1:])
    assert "mini" not in rest
    assert all(f'SIZE["{key}"]' in rest for key in small)


@pytest.mark.parametrize("name", NAMES)
def test_it_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)  # where it goes itself; and back again
    monkeypatch.setenv("NOTEBOOK_RUNS", str(tmp_path))
    monkeypatch.setenv("NOTEBOOK_LIMITS", LIMITS)
    environment = dict(os.environ)
    execute(name)
    os.environ.clear()
    os.environ.update(environment)  # a run's seed is in it
    shown = capsys.readouterr().out
    assert "ROUGE-1" in shown
    (page,) = tmp_path.glob("*/report.html")
    assert "methods compared" in page.read_text(encoding="utf-8")
    assert not (FOLDER / "runs").exists()

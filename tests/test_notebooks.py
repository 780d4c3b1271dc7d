"""The notebooks run as they stand, on a few batches of the miniature."""

import json
import os
import re
import warnings
from pathlib import Path

import matplotlib as mpl
import pytest

from alignsum.notebook import SIZES

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "notebooks"
NAMES = ("1_prompting", "2_fine_tuning", "3_rlhf")


def read_cells(name: str, kind: str = "code") -> list[dict[str, object]]:
    notebook = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def read_code(name: str) -> list[str]:
    return ["".join(cell["source"]) for cell in read_cells(name)]  # type: ignore[call-overload]


@pytest.mark.parametrize("name", NAMES)
def test_one_cell_says_which_size(name: str) -> None:
    first, *rest = read_code(name)
    assert all(f'"{size}"' in first for size in SIZES)
    assert not any('"mini"' in code for code in rest)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_committed_with_clean_outputs_and_a_plot(name: str) -> None:
    outputs = [output for cell in read_cells(name) for output in cell["outputs"]]  # type: ignore[attr-defined]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(output.get("name") == "stderr" for output in outputs)
    text = json.dumps([output.get("text", "") for output in outputs])
    assert not re.search(r"/root/|/home/|/work/|/tmp/|[Ww]arning", text)


def test_they_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One after the other: PPO starts from the LoRA of the second."""
    monkeypatch.setenv("NOTEBOOK_RUNS", str(tmp_path))
    monkeypatch.setenv("NOTEBOOK_QUICK", "1")
    monkeypatch.chdir(tmp_path)
    environment = dict(os.environ)
    with mpl.rc_context({"backend": "agg"}), warnings.catch_warnings():
        for name in NAMES:
            space = {"__name__": "__main__"}  # one namespace for all cells, as in a kernel
            for number, code in enumerate(read_code(name)):
                exec(compile(code, f"{name}, cell {number}", "exec"), space)  # noqa: S102
    os.environ.clear()
    os.environ.update(environment)  # a run's seed is in it
    shown = capsys.readouterr().out
    assert all(f"{name}: ROUGE-1" in shown for name in ("3_shots", "soft_prompt", "ppo"))
    assert "toxicity_change" in shown
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == list(NAMES)

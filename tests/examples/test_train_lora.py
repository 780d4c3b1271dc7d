"""examples/train_lora.py and the pages' Python blocks run from another folder, as users do."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from common.hub import ASSETS

ROOT = Path(__file__).resolve().parents[2]
T5, ROBERTA = (str(ASSETS / "mini" / name) for name in ("t5", "roberta"))
# The same classes on what is here: no hub, two steps.
HERE = {
    "google/flan-t5-base": T5,
    "facebook/roberta-hate-speech-dynabench-r4-target": "mini",
    "max_epochs=3": "max_epochs=1, max_steps=2",
    "runs/full_ft/export": T5,
    "runs/reward/export": ROBERTA,
}


def run_elsewhere(folder: Path, *arguments: str | Path) -> str:
    """Run Python in a folder with a small dataset, and return what it prints."""
    rows = [
        f"#Person1#: Lunch at {n}?\\n#Person2#: Yes.,They have lunch at {n}." for n in range(40)
    ]
    text = "dialogue,summary\n" + "\n".join(rows) + "\n"
    (folder / "my_chats.csv").write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_the_python_example_trains_tests_and_reloads_its_export(tmp_path: Path) -> None:
    options = ["--source", "my_chats.csv", "--max_steps", "2", "--run_dir", "run"]
    shown = run_elsewhere(tmp_path, ROOT / "examples" / "train_lora.py", *options)
    # No advertisement, progress bar of loading, or deprecation inside of another library.
    noise = ("Tip:", "Loading weights", "LeafSpec", "FutureWarning", "Total FLOPs", "TPU available")
    assert not [words for words in noise if words in shown]
    assert "test/rouge1: " in shown and "test/toxicity: " in shown
    assert (tmp_path / "run" / "export" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    "pages",
    [
        ["README.md"],
        ["docs/python.md", "docs/how_to.md", "docs/methods/lora.md"],  # train, then load the export
        ["docs/evaluation.md", "docs/methods/full_ft.md", "docs/methods/reward_model.md"],
    ],
    ids=lambda pages: pages[0],
)
def test_python_blocks_of_pages_run(pages: list[str], tmp_path: Path) -> None:
    blocks = [
        block
        for page in pages
        for block in re.findall(
            r"^```python\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.DOTALL | re.MULTILINE
        )
    ]
    assert len(blocks) >= len(pages)
    code = "\n".join(blocks)
    for there, here in HERE.items():
        code = code.replace(there, here)
    run_elsewhere(tmp_path, "-c", code)
    trains = "trainer.fit" in code
    assert (tmp_path / "runs" / "lora" / "export" / "README.md").is_file() == trains

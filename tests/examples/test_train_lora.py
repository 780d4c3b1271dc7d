"""examples/train_lora.py runs from another folder, as a user's own script would."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_python_example_trains_tests_and_reloads_its_export(tmp_path: Path) -> None:
    source = tmp_path / "dialogues.csv"
    rows = [
        f"#Person1#: Lunch at {n}?\\n#Person2#: Yes.,They have lunch at {n}." for n in range(40)
    ]
    source.write_text("dialogue,summary\n" + "\n".join(rows) + "\n", encoding="utf-8")
    options = ["--source", source.name, "--max_steps", "2", "--run_dir", "run"]
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "train_lora.py", *options],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # No advertisement, progress bar of loading, or deprecation inside of another library.
    noise = ("Tip:", "Loading weights", "LeafSpec", "FutureWarning", "Total FLOPs", "TPU available")
    assert not [words for words in noise if words in done.stdout + done.stderr]
    assert "test/rouge1: " in done.stdout and "test/toxicity: " in done.stdout
    assert (tmp_path / "run" / "export" / "adapter_model.safetensors").is_file()

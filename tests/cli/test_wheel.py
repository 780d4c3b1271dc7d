"""The wheel has everything that a run needs, and works from an empty folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHIPPED = (
    "alignsum", "callbacks", "collecting", "common", "datamodules", "lightning_modules", "metrics",
    "reporting", "configs", "assets",
)  # fmt: skip
NOT_SHIPPED = ("tests", "tools", "benchmarks", "docs", "examples")


def tracked(*folders: str) -> set[str]:
    command = ["git", "ls-files", *folders]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in done.stdout.splitlines() if (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build from a copy: a build leaves folders behind."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs the git repository")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "wheel", ".", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", "--wheel-dir", str(out)], cwd=source, check=True)
    (file,) = out.glob("*.whl")
    return file


def test_the_wheel_has_every_file_of_the_packages(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert tracked(*SHIPPED) | {"train.py"} <= names
    assert not [name for name in names if name.split("/")[0] in NOT_SHIPPED]
    (entry,) = [name for name in names if name.endswith("entry_points.txt")]
    assert b"alignsum = alignsum.__main__:main" in zipfile.ZipFile(wheel).read(entry)


@pytest.mark.slow
def test_the_installed_wheel_trains_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    home, work = tmp_path / "venv", tmp_path / "work"
    work.mkdir()
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True)
    # The packages that alignsum depends on come from this environment, without a download.
    (site,) = (home / "lib").glob("python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    names = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {k: v for k, v in os.environ.items() if k not in names}

    def run(*command: str | Path) -> str:
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout + done.stderr

    where = run(python, "-c", "import alignsum, common.hub as h; print(h.resolve_model('mini'))")
    assert str(site) in where
    said = run(
        python, "-m", "train", "fit", "--config", "configs/lora.yaml",
        "--config", "configs/overlays/mini.yaml", "--trainer.max_steps", "2",
    )  # fmt: skip
    assert "shipped config" in said
    assert (work / "runs" / "lora" / "export" / "adapter_config.json").is_file()
    assert "compare" in run(home / "bin" / "alignsum", "--help")
    run(home / "bin" / "alignsum", "compare", "runs/lora", "--out", "runs/report")

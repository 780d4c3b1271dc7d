"""Nothing that comes from outside is executed, used as a path, or leaks what is secret."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import train
from alignsum.commands import merge, predict
from common.run_folder import RunFolder
from common.versions import HIDDEN, redact, show_command
from tests.conftest import Fit
from tests.rows import make_rows, write_rows


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.target}",)


def run_code_of(main: Callable[..., Any], arguments: list[str], capsys: Any) -> tuple[Any, str]:
    """Run a command that has to refuse; give its exit code and what it said."""
    capsys.readouterr()
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    said = capsys.readouterr()
    return code, " ".join((said.err + said.out).split())


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    return lambda: " ".join(record.getMessage() for record in caplog.records)


@pytest.fixture
def evil_model(t5: str, tmp_path: Path) -> tuple[str, Path]:
    """A model whose weights are a pickle that runs a command."""
    folder, touched = tmp_path / "evil", tmp_path / "touched"
    shutil.copytree(t5, folder)
    (folder / "model.safetensors").unlink()
    torch.save({"shared.weight": Evil(touched)}, folder / "pytorch_model.bin")
    return str(folder), touched


def test_a_malicious_model_is_refused(
    evil_model: tuple[str, Path], fit_arguments: Callable[..., list[str]], tmp_path: Path,
    capsys: pytest.CaptureFixture[str], quiet: Callable[[], str],
) -> None:  # fmt: skip
    folder, touched = evil_model
    arguments = fit_arguments("full_ft", tmp_path / "run", "--model.backbone", folder)
    code, said = run_code_of(train.main, arguments, capsys)
    assert (code, touched.exists()) == (2, False), said
    assert "more than tensors" in said
    (tmp_path / "in.txt").write_text("#Person1#: Hello.\n")
    files = ["--input", str(tmp_path / "in.txt"), "--output", str(tmp_path / "out.jsonl")]
    code, said = run_code_of(predict.main, [folder, *files], capsys)
    assert (code, touched.exists()) == (2, False), said
    assert "more than tensors" in said + quiet()


def test_a_malicious_adapter_is_refused(
    fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str], quiet: Callable[[], str]
) -> None:
    fit("lora", tmp_path / "run", "--trainer.max_epochs", "1")
    export, touched = tmp_path / "run" / "export", tmp_path / "touched"
    (export / "adapter_model.safetensors").unlink()
    torch.save({"a": Evil(touched)}, export / "adapter_model.bin")
    out = str(tmp_path / "merged")
    code, said = run_code_of(merge.main, [str(export), "--out", out], capsys)
    assert (code, touched.exists()) == (2, False), said + quiet()
    assert "more than tensors" in said + quiet()


def test_remote_code_is_not_run(
    t5: str, fit_arguments: Callable[..., list[str]], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder, touched = tmp_path / "remote", tmp_path / "touched"
    shutil.copytree(t5, folder)
    code = f"open({str(touched)!r}, 'w')\nclass C: pass\nclass M: pass\n"
    (folder / "remote.py").write_text(code)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "of_my_own", "auto_map": {
        "AutoConfig": "remote.C", "AutoModelForSeq2SeqLM": "remote.M"}}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    arguments = fit_arguments("full_ft", tmp_path / "run", "--model.backbone", str(folder))
    exit_code, said = run_code_of(train.main, arguments, capsys)
    assert (exit_code, touched.exists()) == (2, False)
    assert "of_my_own" in said or "trust_remote_code" in said


def every_path(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_names_from_data_are_no_paths(fit: Fit, tmp_path: Path, roberta: str) -> None:
    outside = tmp_path / "outside_evil"
    names = ["../../evil", str(outside), "..\\evil", "a/b", "x\ny", "CON", "~/evil", "$(id)"]
    rows = make_rows(22)
    for i, row in enumerate(rows):
        row["id"] = names[i % len(names)] + "#" * (i // len(names))
    data = write_rows(tmp_path / "data", train=rows, validation=rows[:6], test=rows[:9])
    run = tmp_path / "deep" / "run"
    before = every_path(tmp_path)
    settings = ["--data.source", str(data), "--toxicity.model", roberta]
    with pytest.raises(SystemExit):  # the non-finite batch is saved and its rows are named
        fit("lora", run, *settings, "--trainer.callbacks+=tests.breaking.Poison",
            "--trainer.callbacks.steps=[2]")  # fmt: skip
    new = every_path(tmp_path) - before
    assert all(path == run.parent or path.is_relative_to(run) for path in new)
    assert not any("evil" in path.name for path in new)
    assert any(RunFolder(run).nonfinite.iterdir())


# Secrets ----------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[2]

KEY = "0123456789abcdef0123456789abcdef01234567"
HF = "hf_" + "AbCdEfGh" * 4
GIVEN = "hf_" + "ZyXwVuTs" * 4


def test_no_key_is_in_any_file_of_a_run(
    fit_arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    template = f"see https://me:{KEY}@host and {GIVEN} {{dialogue}}"
    arguments = fit_arguments(
        "lora", tmp_path / "run", "--config", "configs/overlays/wandb.yaml",
        "--trainer.logger.init_args.save_dir", str(tmp_path / "wandb"),
        "--data.prompt", "Template", "--data.prompt.template", template,
        "--trainer.max_epochs", "1",
    )  # fmt: skip
    (tmp_path / "wandb").mkdir()
    # In a process of its own, for W&B's client keeps what an earlier test did to it.
    done = subprocess.run(
        [sys.executable, "train.py", *arguments], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"WANDB_API_KEY": KEY, "HF_TOKEN": HF, "WANDB_MODE": "offline"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    for secret in (KEY, HF, GIVEN):
        found = [str(path) for path in files if secret.encode() in path.read_bytes()]
        assert found == []
    summary = RunFolder(tmp_path / "run").read_summary()
    assert f"see https://{HIDDEN}@host and {HIDDEN}" in summary["command"]
    assert not any(secret in done.stdout + done.stderr for secret in (KEY, HF, GIVEN))


def test_secrets_are_hidden_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    long = "-----BEGIN KEY-----" + "x" * 5000
    for name, value in {
        "MY_API_KEY": "s3cr3t-s3cr3t", "A_TOKEN": "short", "MONKEY": "banana-banana",
        "SSH_KEY": long,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    assert redact("a s3cr3t-s3cr3t banana-banana short") == f"a {HIDDEN} banana-banana short"
    assert redact(f"a {long} b") == f"a {HIDDEN} b"
    assert redact("sk-" + "a" * 20 + " ghp_" + "b" * 20) == f"{HIDDEN} {HIDDEN}"
    assert redact(f"https://a.b/c?d=e commit {KEY}") == f"https://a.b/c?d=e commit {KEY}"
    prose = "template: 'the token: {dialogue}\n\n  is a password'\n"
    assert redact(prose) == prose
    text = "model:\n  api_key: abc\n  max_new_tokens: 8\n  pad_token: <pad>\n  - token: null\n"
    assert redact(text) == text.replace("abc", HIDDEN)
    tagged = f"tags:\n- {GIVEN}\n- b\nnotes: {GIVEN} it's\nlast: at {GIVEN}\n"
    read = {"tags": [HIDDEN, "b"], "notes": f"{HIDDEN} it's", "last": f"at {HIDDEN}"}
    assert yaml.safe_load(redact(tagged)) == read


def test_secret_options_are_hidden_in_a_command() -> None:
    command = [
        "train.py", "--hub_token", "a b", "--x.api_key=a b", "--model.ppo.max_new_tokens", "8",
        "--password", "--next", "a",
    ]  # fmt: skip
    assert shlex.split(show_command(command)) == [
        "train.py", "--hub_token", HIDDEN, f"--x.api_key={HIDDEN}", "--model.ppo.max_new_tokens",
        "8", "--password", "--next", "a",
    ]  # fmt: skip

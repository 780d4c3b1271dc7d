"""The command line as its users meet it: run folders, resuming, and what it refuses."""

import csv
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

import train
from alignsum import __main__ as report
from common import hub
from common.run_folder import RunFolder
from datamodules.batching import Batch
from lightning_modules import LoRA
from tests.rows import write_rows

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"

ROWS = [
    {
        "id": f"r{number}",
        "dialogue": f"#Person1#: Is room {number} free?\n#Person2#: Yes, from {number} o'clock.",
        "summary": f"Room {number} is free from {number} o'clock.",
    }
    for number in range(8)
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "data", train=ROWS, validation=ROWS[:4], test=ROWS[4:])


@pytest.fixture
def base(t5: str, roberta: str, data: Path, tmp_path: Path) -> list[str]:
    """A tiny LoRA run from folders in the hub's layout."""
    return [
        "--config", str(CONFIGS / "lora.yaml"), "--model.backbone", t5,
        "--toxicity.model", roberta, "--data.source", str(data), "--trainer.precision", "32-true",
        "--trainer.accelerator", "cpu", "--model.decoding.max_new_tokens", "8",
        "--trainer.max_epochs", "1", "--run_dir", str(tmp_path / "run"),
    ]  # fmt: skip


Fails = Callable[..., str]


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Fails:
    """Run a command that must be refused; return what it printed."""

    def run(*arguments: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            train.main(arguments)
        assert stop.value.code not in (0, None)
        said = capsys.readouterr()
        assert "Traceback" not in said.err + said.out
        return " ".join((said.err + said.out).split())

    return run


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def test_a_used_run_folder_is_refused_and_left_alone(
    base: list[str], tmp_path: Path, fails: Fails
) -> None:
    train.main(["fit", *base])
    before = snapshot(tmp_path / "run")
    said = fails("fit", *base)
    assert "holds another run" in said
    assert "--resume auto" in said
    assert snapshot(tmp_path / "run") == before

    train.main(["test", *base])
    before = snapshot(tmp_path / "run")
    assert "earlier test" in fails("test", *base)
    assert snapshot(tmp_path / "run") == before
    train.main(["test", *base, "--overwrite", "true"])
    assert snapshot(tmp_path / "run")["predictions.jsonl"] == before["predictions.jsonl"]


def test_a_command_that_is_refused_overwrites_nothing(
    base: list[str], data: Path, tmp_path: Path, fails: Fails
) -> None:
    train.main(["fit", *base])
    train.main(["test", *base])
    before = snapshot(tmp_path / "run")
    fails("fit", *base, "--overwrite", "true", "--model.r", "0")
    fails("fit", *base, "--overwrite", "true", "--model.target_modules", "[query]")
    assert "--resume" in fails("fit", *base, "--overwrite", "true", "--resume", "auto")
    assert "earlier test" in fails("predict", *base)
    (data / "train.jsonl").write_text("{")
    fails("fit", *base, "--overwrite", "true")
    (data / "test.jsonl").write_text("{")
    fails("test", *base, "--overwrite", "true")
    assert snapshot(tmp_path / "run") == before


def test_the_saved_config_does_not_repeat_the_options_of_one_call(
    base: list[str], tmp_path: Path, fails: Fails
) -> None:
    train.main(["fit", *base])
    train.main(["fit", *base, "--overwrite", "true"])
    train.main(["fit", *base, "--trainer.max_epochs", "2", "--resume", "auto"])
    run = RunFolder(tmp_path / "run")
    saved = yaml.safe_load(run.config.read_text())
    assert (saved["overwrite"], saved["resume"], saved["ckpt_path"]) == (False, None, None)
    assert "holds another run" in fails("fit", "--config", str(run.config))
    train.main(["test", "--config", str(run.config)])
    command = shlex.split(run.read_summary()["command"])
    assert command[:4] == ["python", "train.py", "fit", "--config"]
    assert command[4].endswith("lora.yaml")


def test_overwrite_spares_what_the_run_starts_from(
    base: list[str], roberta: str, tmp_path: Path, fails: Fails
) -> None:
    train.main(["fit", *base])
    before = snapshot(tmp_path / "run")
    adapter = str(tmp_path / "run" / "export")
    ppo = ["--config", str(CONFIGS / "ppo.yaml"), *base[2:], "--model.reward_model", roberta]
    said = fails("fit", *ppo, "--model.adapter", adapter, "--overwrite", "true")
    assert f"would delete {adapter}" in said
    last = str(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert "would delete" in fails("fit", *base, "--ckpt_path", last, "--overwrite", "true")
    assert snapshot(tmp_path / "run") == before


def test_a_failed_run_keeps_its_best_and_its_last_weights(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [*base, "--data.batch_size", "2", "--trainer.max_epochs", "2"]
    settings += ["--checkpoint.every_n_train_steps", "1"]
    kept: list[bytes] = []
    step = LoRA.training_step

    def break_off(self: LoRA, batch: Batch, batch_idx: int) -> torch.Tensor:
        if self.global_step == 6:
            kept.append((tmp_path / "run" / "checkpoints" / "best.ckpt").read_bytes())
            raise FloatingPointError("the loss is nan")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(LoRA, "training_step", break_off)
    with pytest.raises(SystemExit):
        train.main(["fit", *settings])
    checkpoints = tmp_path / "run" / "checkpoints"
    assert (checkpoints / "best.ckpt").read_bytes() == kept[0]
    assert torch.load(checkpoints / "last.ckpt", weights_only=True)["global_step"] == 6
    monkeypatch.undo()
    train.main(["fit", *settings, "--resume", "auto"])
    assert torch.load(checkpoints / "last.ckpt", weights_only=True)["global_step"] == 8


def test_a_run_that_fails_before_its_first_step_keeps_nothing(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Fails
) -> None:
    def refuse(self: LoRA, batch: Batch, batch_idx: int) -> torch.Tensor:
        raise FloatingPointError("the gate is shut")

    monkeypatch.setattr(LoRA, "training_step", refuse)
    assert "the gate is shut" in fails("fit", *base)
    assert "no trained model" in fails("test", *base)


def test_sigterm_is_not_success(base: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "train.py", "fit", *base, "--trainer.max_epochs", "100000"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, said.decode()[-2000:]
    assert b"--resume auto" in said


def test_overwrite_removes_the_run_and_nothing_else(base: list[str], tmp_path: Path) -> None:
    train.main(["fit", *base])
    (tmp_path / "run" / "notes.txt").write_text("mine")
    train.main(["fit", *base, "--overwrite", "true"])
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
    assert RunFolder(tmp_path / "run").export.is_dir()


def test_resume_starts_a_run_and_continues_one(
    base: list[str], tmp_path: Path, fails: Fails
) -> None:
    assert "gone.ckpt" in fails("fit", *base, "--resume", str(tmp_path / "gone.ckpt"))
    assert not (tmp_path / "run").exists()
    train.main(["fit", *base, "--resume", "auto"])
    train.main(["fit", *base, "--trainer.max_epochs", "3", "--resume", "auto"])
    rows = RunFolder(tmp_path / "run").read_metrics_csv()
    assert [int(row["epoch"]) for row in rows if row.get("val/loss")] == [0, 1, 2]


def test_a_test_can_take_another_runs_checkpoint(base: list[str], tmp_path: Path) -> None:
    train.main(["fit", *base])
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    elsewhere = [*base[:-1], str(tmp_path / "elsewhere")]
    train.main(["test", *elsewhere, "--ckpt_path", str(best)])
    assert RunFolder(tmp_path / "elsewhere").predictions.is_file()


def test_the_default_run_folder_is_named_after_the_config(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train.main(["fit", *base[:-2]])
    assert RunFolder(tmp_path / "runs" / "lora").holds_run()


def test_lora_then_ppo_from_its_export(
    base: list[str], roberta: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train.main(["fit", *base, "--model.r", "4", "--model.target_modules", "[q, k]"])
    ppo = [
        "--config", str(CONFIGS / "ppo.yaml"), *base[2:-2],
        "--model.reward_model", roberta, "--model.adapter", str(tmp_path / "run" / "export"),
        "--model.ppo.max_new_tokens", "8", "--data.min_dialogue_chars", "0",
        "--run_dir", str(tmp_path / "ppo"),
    ]  # fmt: skip
    train.main(["fit", *ppo])
    policy = RunFolder(tmp_path / "ppo").read_config()["model"]["init_args"]["policy"]["init_args"]
    assert (policy["r"], policy["alpha"], policy["target_modules"]) == (4, 32, ["k", "q"])
    capsys.readouterr()
    train.main(["test", "--config", str(tmp_path / "ppo" / "config.yaml")])
    said = capsys.readouterr().out
    assert "Test metric" not in said
    assert "toxicity ↓" in said
    assert "before" in said
    metrics = RunFolder(tmp_path / "ppo").read_summary()["metrics"]
    before, after, change = (
        metrics[f"test/toxicity_{name}"] for name in ("before", "after", "change")
    )
    assert change["value"] == pytest.approx(after["value"] - before["value"], abs=1e-6)
    assert change["low"] <= change["value"] <= change["high"]
    assert metrics["test/toxicity"] == after
    rows = RunFolder(tmp_path / "ppo").read_metrics_csv()
    first = next(row for row in rows if row["objective/kl"])
    assert abs(float(first["objective/kl"])) < 1e-4

    # What was trained is tested on what provokes, beside its own test, and then looked at.
    challenge, report_dir = RunFolder(tmp_path / "challenge"), tmp_path / "report"
    train.main([
        "test", "--config", str(tmp_path / "ppo" / "config.yaml"), "--data.source", "challenge",
        "--data.max_test_rows", "5", "--run_dir", str(challenge.path),
        "--ckpt_path", str(tmp_path / "ppo" / "checkpoints" / "last.ckpt"),
    ])  # fmt: skip
    assert challenge.read_predictions()[0]["id"] == "challenge_0"
    folders = [str(tmp_path / "ppo"), str(challenge.path)]
    assert report.main(["toxicity", *folders, "--out", str(report_dir)]) == 0
    page = (report_dir / "toxicity.md").read_text(encoding="utf-8").split("## challenge\n")[1]
    assert all(f"| {row['id']} |" in page for row in challenge.read_predictions())


def test_without_a_hub_everything_missing_is_named_at_once(tmp_path: Path, fails: Fails) -> None:
    run = tmp_path / "run"
    said = fails("fit", "--config", str(CONFIGS / "ppo.yaml"), "--run_dir", str(run))
    for name in (
        "google/flan-t5-base", "facebook/roberta-hate-speech-dynabench-r4-target",
        "knkarthick/dialogsum", hub.OVERLAY,
    ):  # fmt: skip
        assert name in said
    assert not run.exists()


def test_several_problems_come_in_one_message(base: list[str], fails: Fails) -> None:
    said = fails(
        "fit", *base, "--trainer.precision", "16-mixed", "--model.backbone", "./nowhere",
        "--toxicity.model", "./gone",
    )  # fmt: skip
    assert "3 reason(s)" in said
    assert all(word in said for word in ("fp16", "./nowhere", "./gone"))


def test_wandb_without_a_login_is_one_line(base: list[str], tmp_path: Path) -> None:
    # In a process of its own, because W&B reads its settings once.
    environment = {name: value for name, value in os.environ.items() if "WANDB" not in name}
    done = subprocess.run(
        [sys.executable, "train.py", "fit", *base, "--config", "configs/overlays/wandb.yaml"],
        cwd=ROOT, env=environment | {"HOME": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == (
        "error: nothing was started: Weights & Biases has no login: run `wandb login`, or set "
        "WANDB_MODE=offline\n"
    )
    assert not (tmp_path / "run").exists()


def lay_out_hub_cache(home: Path, kind: str, repo: str, files: Path) -> None:
    """The folders that huggingface_hub writes when it downloads."""
    folder = home / "hub" / f"{kind}s--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0123456789abcdef0123456789abcdef01234567")
    shutil.copytree(files, folder / "snapshots" / "0123456789abcdef0123456789abcdef01234567")


def test_a_hub_cache_is_enough(t5: str, roberta: str, tmp_path: Path) -> None:
    """The shipped config, its names unchanged, with tiny models under the big ones' names."""
    home, rows = tmp_path / "home", tmp_path / "rows"
    rows.mkdir()
    for split, dialogues in (("train", ROWS), ("validation", ROWS[:2]), ("test", ROWS[:2])):
        # The hub's form: one row a reference.
        with (rows / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["id", "dialogue", "summary", "topic"])
            writer.writeheader()
            for row in dialogues:
                for number in (1, 2, 3) if split == "test" else (1,):
                    summary = f"{number}: {row['summary']}"
                    writer.writerow(
                        row | {"id": f"{row['id']}_{number}", "summary": summary, "topic": "a room"}
                    )
    lay_out_hub_cache(home, "model", "google/flan-t5-base", Path(t5))
    lay_out_hub_cache(
        home, "model", "facebook/roberta-hate-speech-dynabench-r4-target", Path(roberta)
    )
    lay_out_hub_cache(home, "dataset", "knkarthick/dialogsum", rows)
    settings = [
        "--config", "configs/lora.yaml", "--run_dir", str(tmp_path / "run"),
        "--trainer.max_epochs", "1", "--trainer.precision", "32-true",
        "--trainer.accelerator", "cpu", "--model.decoding.max_new_tokens", "8",
    ]  # fmt: skip
    program = (
        f"import train; train.main(['fit', *{settings!r}]); train.main(['test', *{settings!r}])"
    )
    environment = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    predictions = RunFolder(tmp_path / "run").read_predictions()
    assert [len(row["references"]) for row in predictions] == [3, 3]
    adapter = json.loads((tmp_path / "run" / "export" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "google/flan-t5-base"


@pytest.mark.parametrize("config", ["lora", "ppo"])
def test_two_ranks_see_every_row_once_with_the_trained_weights(
    config: str, t5: str, roberta: str, data: Path, tmp_path: Path
) -> None:
    write_rows(data, test=[row | {"id": f"t{n}"} for n, row in enumerate(ROWS[:7])])
    run = tmp_path / config
    settings = [
        "--config", f"configs/{config}.yaml", "--model.backbone", t5, "--toxicity.model", roberta,
        "--data.source", str(data), "--data.batch_size", "2", "--run_dir", str(run),
        "--trainer.precision", "32-true", "--trainer.accelerator", "cpu",
        "--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.max_epochs", "1",
        "--model.decoding.max_new_tokens", "8",
        "--model.optimizer.init_args.lr", "0.05",  # enough to change every text
    ]  # fmt: skip
    if config == "ppo":
        settings += [
            "--model.reward_model", roberta, "--model.ppo.max_new_tokens", "8",
            "--data.min_dialogue_chars", "0",
        ]  # fmt: skip
    for command in ("fit", "test"):
        done = subprocess.run(
            [sys.executable, "train.py", command, *settings],
            cwd=ROOT, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    predictions = RunFolder(run).read_predictions()
    two = [row["prediction"] for row in predictions]
    assert [row["id"] for row in predictions] == [f"t{n}" for n in range(7)]
    assert RunFolder(run).read_summary()["metrics"]["test/rouge1"]["n"] == 7
    # One rank tests the same weights: both of the two had loaded the checkpoint.
    alone = ["--trainer.devices", "1", "--trainer.strategy", "auto", "--overwrite", "true"]
    train.main(["test", *settings, *alone])
    one = [row["prediction"] for row in RunFolder(run).read_predictions()]
    assert one == two

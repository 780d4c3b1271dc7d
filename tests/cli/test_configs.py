"""Every shipped YAML parses; every one runs on the miniature through fit and test."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import train
from alignsum.option_check import prepare
from alignsum.overlays import prepare_configs
from common.run_folder import RunFolder
from metrics.faithfulness import CHECKS
from metrics.text_statistics import STATISTICS

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
OVERLAYS = sorted((ROOT / "configs" / "overlays").rglob("*.yaml"))
MINI = str(ROOT / "configs" / "overlays" / "mini.yaml")


def print_config(capsys: pytest.CaptureFixture[str], *files: Path | str) -> str:
    arguments = ["fit", *(f"--config={file}" for file in files), "--print_config"]
    with pytest.raises(SystemExit) as stop:
        train.main(arguments)
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_a_whole_number_of_batches_stays_one(tmp_path: Path) -> None:
    """In a process of its own: what else was imported decides (see train.py)."""
    command = ["train.py", "fit", "--config", "configs/lora.yaml"]
    command += ["--trainer.limit_test_batches", "1", "--print_config"]
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert "limit_test_batches: 1\n" in done.stdout


@pytest.mark.parametrize(
    "prompt",
    ["--data.prompt=Shorten: {dialogue}", '--data.prompt={"class_path": "Template", "init_args": '
     '{"template": "Shorten: {dialogue}"}}'],
)  # fmt: skip
def test_short_options(prompt: str, capsys: pytest.CaptureFixture[str]) -> None:
    for options in (
        ["--lr", "0.5", "--seed", "7", *prompt.split("=")],
        ["--lr=0.5", "--seed=7", prompt],
    ):
        with pytest.raises(SystemExit):
            train.main(["fit", "--config", "configs/lora.yaml", *options, "--print_config"])
        parsed = yaml.safe_load(capsys.readouterr().out)
        assert parsed["seed_everything"] == 7
        assert parsed["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.5
        style = parsed["data"]["init_args"]["prompt"]
        assert style["class_path"].endswith("Template")
        assert style["init_args"]["template"] == "Shorten: {dialogue}"


@pytest.mark.parametrize("estimator", ["RLOO", "GRPO"])
def test_another_estimator_does_not_inherit_the_whitening_of_gae(
    estimator: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        options = ["--config", "configs/ppo.yaml", "--model.advantage", estimator]
        train.main(["fit", *options, "--print_config"])
    advantage = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["advantage"]
    assert advantage["init_args"]["normalize"] is False
    assert "whiten" not in advantage["init_args"]


def test_the_shipped_files_are_found() -> None:
    assert {file.stem for file in CONFIGS} == {
        "adapter", "best_of_n", "classifier", "dpo", "full_ft", "in_context", "lora", "ppo",
        "reward", "soft_prompt",
    }  # fmt: skip
    assert {file.stem for file in OVERLAYS} == {
        "ddp", "debug", "fsdp", "mini", "minilm", "mlflow", "rollouts", "smollm2", "tensorboard",
        "wandb",
    }  # fmt: skip


@pytest.mark.parametrize("overlay", [None, *OVERLAYS], ids=lambda file: file and file.stem)
@pytest.mark.parametrize("config", CONFIGS, ids=lambda file: file.stem)
def test_every_config_parses_with_every_overlay(
    config: Path, overlay: Path | None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = print_config(capsys, config, *([overlay] if overlay else []))
    (tmp_path / "whole.yaml").write_text(text)
    prepare(["fit", "--config", str(tmp_path / "whole.yaml")])  # knows every option of the parser
    parsed = yaml.safe_load(text)
    own = yaml.safe_load(config.read_text())
    assert parsed["model"]["class_path"].endswith(own["model"]["class_path"])
    if overlay is not None and overlay.stem == "mini":
        assert parsed["model"]["init_args"]["backbone"] == "mini"
        assert parsed["data"]["init_args"]["source"] == "mini"
    elif overlay is not None and overlay.stem == "smollm2" and not is_classifier(config):
        assert parsed["model"]["init_args"]["backbone"].endswith("SmolLM2-135M-Instruct")
        assert parsed["data"]["init_args"]["chat_template"] is True
    elif overlay is not None and overlay.stem == "minilm" and is_classifier(config):
        assert parsed["model"]["init_args"]["backbone"].endswith("all-MiniLM-L6-v2")
    else:
        assert parsed["model"]["init_args"]["backbone"] == own["model"]["init_args"]["backbone"]


def is_classifier(config: Path) -> bool:
    return config.stem in ("reward", "classifier")


def test_full_size_configs_name_what_the_project_is_about() -> None:
    for config in CONFIGS:
        own = yaml.safe_load(config.read_text())
        if is_classifier(config):
            assert own["model"]["init_args"]["backbone"] == "FacebookAI/roberta-base"
            continue
        assert own["model"]["init_args"]["backbone"] == "google/flan-t5-base"
        dialogues = "dialogues" if config.stem == "dpo" else "source"
        assert own["data"]["init_args"][dialogues] == "knkarthick/dialogsum"
        assert own["toxicity"]["model"] == "facebook/roberta-hate-speech-dynabench-r4-target"
        assert own["trainer"]["precision"] == "bf16-mixed"


@pytest.mark.parametrize("config", CONFIGS, ids=lambda file: file.stem)
def test_every_mini_config_runs_through_fit_and_test(config: Path, tmp_path: Path) -> None:
    run = tmp_path / config.stem
    settings = [
        "--config", str(config), "--config", MINI, "--run_dir", str(run),
        "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1",
        "--trainer.limit_test_batches", "1", "--data.batch_size", "4",
        "--trainer.log_every_n_steps", "1",
    ]  # fmt: skip
    if config.stem not in ("in_context", "best_of_n"):
        settings += ["--trainer.max_epochs", "1"]
    if config.stem in ("ppo", "dpo"):
        settings += ["--trainer.val_check_interval", "1.0"]
    if config.stem == "ppo":
        settings += ["--model.ppo.epochs", "1"]
    train.main(["fit", *settings])
    train.main(["test", *settings, "--toxicity.label", "hate"])
    folder = RunFolder(run)
    for entry in (folder.config, folder.metrics_csv, folder.summary, folder.predictions):
        assert entry.is_file(), entry
    assert any(folder.export.iterdir())
    assert folder.checkpoints.is_dir()
    assert any(folder.plots.glob("*.png"))
    assert folder.read_test_config()["toxicity"]["label"] == "hate"
    summary = json.loads(folder.summary.read_text())
    assert set(summary) >= {
        "command", "versions", "seed", "backbone", "method", "parameters", "peak_memory_bytes",
        "seconds", "metrics",
    }  # fmt: skip
    assert summary["command"].startswith("python train.py fit --config")
    names = set(summary["metrics"])
    if config.stem == "classifier":
        assert names >= {"test/accuracy", "test/f1", "test/f1_hate", "test/ece"}
    elif config.stem == "reward":
        assert names >= {"test/accuracy", "test/accuracy_distance_1", "test/ece"}
        assert summary["reward"]["references"] == 2000
    else:
        assert names >= {f"test/rouge{k}" for k in ("1", "2", "L", "Lsum")} | {"test/toxicity"}
        assert names >= {f"test/{name}" for name in (*CHECKS, *STATISTICS)}
        assert isinstance(folder.read_predictions()[0]["unknown_names"], list)
        assert summary["metrics"]["test/rouge1"]["n"] == 4
    if config.stem in ("ppo", "dpo", "best_of_n"):
        assert names >= {f"test/toxicity_{k}" for k in ("before", "after", "change")}
    if config.stem == "dpo":
        assert names >= {f"test/{k}" for k in ("loss", "accuracy", "margin")}
    if config.stem not in ("in_context", "best_of_n"):
        assert (folder.checkpoints / "best.ckpt").is_file() == (config.stem != "ppo")
        assert (folder.checkpoints / "last.ckpt").exists()


def test_an_overlay_gives_each_class_its_section(tmp_path: Path) -> None:
    config, overlay = tmp_path / "a.yaml", tmp_path / "b.yaml"
    config.write_text("model: {class_path: lightning_modules.LoRA, init_args: {r: 4}}")
    overlay.write_text(
        "trainer: {precision: 32-true, devices: 1}\n"
        "per_model:\n"
        "  LoRA: {model: {init_args: {r: 2}}, trainer: {devices: 2}}\n"
        "  FullFT: {trainer: {devices: 3}}\n"
    )
    for arguments in (
        ["fit", "--config", str(config), "--config", str(overlay), "--run_dir", "x"],
        ["fit", f"--config={config}", f"--config={overlay}", "--run_dir", "x"],
    ):
        chosen = prepare_configs(arguments)
        assert chosen[0] == "fit"
        assert chosen[-2:] == ["--run_dir", "x"]
        text = next(part for part in chosen if "32-true" in part).removeprefix("--config=")
        assert yaml.safe_load(text) == {
            "trainer": {"precision": "32-true", "devices": 2},
            "model": {"init_args": {"r": 2}},
        }


def test_shipped_configs_are_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    prepared = prepare_configs(["fit", "--config", "configs/ppo.yaml"])
    assert Path(prepared[-1]) == ROOT / "configs" / "ppo.yaml"
    assert "shipped config" in caplog.text
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "ppo.yaml").write_text("seed_everything: 1\n")
    assert prepare_configs(["fit", "-c", "configs/ppo.yaml"])[-1] == "configs/ppo.yaml"


def test_an_overlay_without_the_class_is_refused(tmp_path: Path) -> None:
    config, overlay = tmp_path / "a.yaml", tmp_path / "b.yaml"
    config.write_text("model: {class_path: SoftPrompt}")
    overlay.write_text("per_model: {LoRA: {}}")
    with pytest.raises(ValueError, match="no entry for SoftPrompt; it has LoRA"):
        prepare_configs(["fit", "-c", str(config), "-c", str(overlay)])

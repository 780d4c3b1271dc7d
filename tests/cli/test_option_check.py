"""Options are checked before torch is imported; test_configs.py shows that none is missing."""

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alignsum.cli import CALLBACKS
from alignsum.early_check import find_device_problem, find_monitor_problem
from alignsum.option_check import SECTIONS, prepare
from alignsum.overlays import expand_short_options

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("lora", "--data.bacth_size 4", ["--data.bacth_size", "--data.batch_size 8"]),
        ("lora", "--trainer.max_epoch=1", ["did you mean --trainer.max_epochs"]),
        ("lora", "--output_dir x", ["did you mean --run_dir"]),
        ("lora", "--model.lr 1", ["did you mean --lr"]),
        ("lora", "--epochs 1", ["did you mean --trainer.max_epochs"]),
        ("lora", "--lr many", ["a number, got 'many'", "--model.optimizer.lr 1e-4"]),
        ("lora", "--trainer.max_epochs ten", ["a whole number, got 'ten'", "max_epochs 3"]),
        ("lora", "--data.batch_size 2.5", ["a whole number, got '2.5'"]),
        ("lora", "--trainer.enable_progress_bar maybe", ["must be true or false"]),
        ("lora", "--model LORA", ["did you mean LoRA", "SoftPrompt"]),
        ("lora", "--model.optimizer AdamWX", ["did you mean AdamW", "SGD"]),
        ("lora", "--data.prompt Flann", ["did you mean Flan", "Instruction"]),
        ("ppo", "--model.ppo.kl_coeff 1", ["did you mean --model.ppo.kl_coef"]),
        ("ppo", "--model.ppo.kl_estimator k4", ["k1 or k2 or k3, got 'k4'"]),
        ("ppo", "--model.policy.rank 3", ["did you mean --model.policy.r"]),
        ("ppo", "--model.advantage GEA", ["did you mean GAE", "RLOO"]),
        ("ppo", "--model.policy.r null", ["null inside a class", "--config"]),
        ("lora", "--seed abc", ["a whole number, got 'abc'"]),
        ("lora", "--lr=-1", ["must be 0 or more"]),
        ("lora", "--model.r 0", ["--model.r must be 1 or more, got 0"]),
        ("ppo", "--model.ppo.kl_coef -1", ["must be 0 or more, got -1"]),
        ("lora", "--lr", ["--model.optimizer.lr needs a value"]),
        ("lora", "--run_dir --seed 1", ["--run_dir needs a value"]),
        ("lora", "configs/overlays/mini.yaml", ["mean --config configs/overlays/mini.yaml"]),
        ("lora", "-data.batch_size 4", ["two dashes: --data.batch_size"]),
        ("lora", "--toxicity.model none", ["write null for none"]),
        ("lora", "--trainer.precision bf17", ["bf16-mixed", "got 'bf17'"]),
        ("lora", "--trainer.callbacks+ EarlyStoping", ["did you mean EarlyStopping"]),
        (
            "lora",
            "--data.columns '{{dialogue: x'",
            ["{dialogue: x is not valid YAML"],
        ),
        ("lora", "--model.target_modules [q,v", ["[q,v is not valid YAML"]),
        ("lora", "--trainer.callbacks '[{{class_path: EarlyStoping}}]'", ["mean EarlyStopping"]),
        (
            "lora",
            "--model '{{class_path: LoRA, init_args: {{rr: 2}}}}'",
            ["did you mean --model.r"],
        ),
        ("lora", "--data.prompt Template --data.prompt.template x", ["contains it 0 times"]),
        ("lora", "--data.prompt 'Sum up {{dialog}}'", ["'Sum up {dialog}'", "once"]),
        ("lora", "--config {file}", ["typo.yaml: model.rr", "--model.r", "typo.yaml: trainr.x"]),
    ],
)
def test_a_mistake_is_answered_in_few_lines(
    method: str, options: str, words: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "typo.yaml"
    file.write_text("model: {init_args: {rr: 4}}\ntrainr: {x: 1}\n")
    text = f"fit --config configs/{method}.yaml {options.format(file=file)}"
    with pytest.raises(ValueError, match="all options:") as caught:
        prepare(expand_short_options(shlex.split(text)))
    said = str(caught.value)
    assert all(each in said for each in words), said
    assert len(said.splitlines()) <= 5


@pytest.mark.parametrize(
    "options",
    [
        "--resume --seed 1 --lr 1e-3 --data.prompt 'Summarize: {dialogue}'",
        "--trainer.callbacks+ LearningRateMonitor --trainer.callbacks.logging_interval step",
        "--trainer.callbacks+ TQDMProgressBar --trainer.logger false --trainer.precision bf16",
        "--trainer.logger TensorBoardLogger --trainer.logger.save_dir x",
        "--trainer.max_epochs null --trainer.limit_val_batches 0.5 --trainer.devices 2",
        "--model my.own.LoRA --model.anything 3 --data.prompt '- {dialogue}'",
        "--model.optimizer torch.optim.SGD --model.optimizer.momentum 0.9",
        "--checkpoint.every_n_train_steps 2 --print_config",
        "--data.prompt Template --data.prompt.template '{dialogue}' --data.columns.dialogue text",
    ],
)
def test_what_the_parser_accepts_is_accepted(options: str) -> None:
    arguments = expand_short_options(shlex.split(f"fit --config configs/lora.yaml {options}"))
    assert prepare(arguments)[3:] == arguments[3:]


def test_the_sections_are_those_of_the_command_line() -> None:
    callbacks = {name: kind.__name__ for name, kind in CALLBACKS.items()}
    assert {**callbacks, "trainer": "Trainer"} == SECTIONS


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("fit --data.bacth_size 3", "did you mean --data.batch_size"),
        ("test", "there is no trained model in"),
        ("fit --checkpoint.monitor val/rouge", "no validation logs val/rouge"),
        ("fit --data.source ''", "--data.source is empty"),
    ],
)
def test_nothing_heavy_is_imported_for_an_answer(options: str, words: str, tmp_path: Path) -> None:
    command, *more = shlex.split(f"{options} --run_dir {tmp_path / 'run'}")
    program = f"""
import sys, train
try:
    train.main([{command!r}, "--config", "configs/lora.yaml", *{more}])
except SystemExit as stop:
    heavy = {{"torch", "lightning", "transformers"}} & sys.modules.keys()
    sys.exit(f"{{heavy}}" if heavy else stop.code)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert len(done.stderr.splitlines()) <= 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"trainer.accelerator": "gpu"}, "torch finds no GPU"),
        ({"trainer.devices": 99}, "no GPU and 2 CPU"),
        ({"trainer.devices": 99, "trainer.accelerator": "cpu"}, "no GPU and 2 CPU"),
        ({"trainer.devices": 2}, None),
        ({"trainer.accelerator": "auto"}, None),
    ],
)
def test_devices_are_counted_before_processes_start(
    settings: dict[str, Any], words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    problem = find_device_problem(settings)
    assert words in problem if words and problem else problem is words


def test_a_monitor_is_judged_by_what_the_method_logs() -> None:
    def judge(model: str, monitor: str, **more: str) -> str | None:
        settings = {"checkpoint.monitor": monitor, **more}
        return find_monitor_problem("fit", settings, model)

    assert judge("LoRA", "val/rougeL") is None
    assert judge("RewardModel", "val/accuracy") is None
    assert judge("RewardModel", "val/rougel")
    assert judge("LoRA", "val/rougel", **{"trainer.callbacks.class_path": "X"}) is None
    assert judge("my.Module", "val/rougel") is None

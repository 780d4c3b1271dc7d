"""The sweep files that are shipped: their settings exist, and what they compare is comparable."""

from pathlib import Path

import pytest
import yaml

import train
from alignsum.commands.sweep import read_sweep

ROOT = Path(__file__).parent.parent
SWEEPS = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))
MINI = ROOT / "configs" / "overlays" / "mini.yaml"
CONFIGS = {
    "examples": ["in_context.yaml"],
    "lora_ranks": ["lora.yaml"],
    "ppo_betas": ["ppo.yaml", MINI],
    "ppo_estimators": ["ppo.yaml", MINI],
    "ppo_policies": ["ppo.yaml", MINI],
    "prompting": ["in_context.yaml"],
    "virtual_tokens": ["soft_prompt.yaml"],
}
"""The configs that each shipped sweep is written for."""


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_shipped_sweeps_parse(file: Path) -> None:
    config = [f"--config={ROOT / 'configs' / name}" for name in CONFIGS[file.stem]]
    made = read_sweep(file, "out", config)
    assert len(made.list_runs()) >= 2
    covered: set[str] = set()  # every choice once, not every combination
    for params in made.list_runs():
        if {*params.values()} - covered:
            covered |= {*params.values()}
            command = [made.commands[0], *made.arguments(params), "--print_config"]
            with pytest.raises(SystemExit) as stop:
                train.main(command)
            assert not stop.value.code


def test_estimators_are_compared_by_equal_rollouts_and_steps() -> None:
    made = read_sweep(ROOT / "configs" / "sweeps" / "ppo_estimators.yaml", "out", [])
    of_mini = yaml.safe_load(MINI.read_text())["per_model"]["PPOPolicy"]
    defaults = {
        "--data.batch_size": of_mini["data"]["init_args"]["batch_size"],
        "--model.ppo.samples": of_mini["model"]["init_args"]["ppo"]["samples"],
    }
    rollouts = set()
    for params in made.list_runs():
        own = dict(argument.split("=") for argument in made.arguments(params))
        assert not any("trainer" in name or "minibatch" in name for name in own)
        batch_size, samples = ({**defaults, **own}[name] for name in defaults)
        rollouts.add(int(batch_size) * int(samples))
    assert len(rollouts) == 1

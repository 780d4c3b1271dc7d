"""examples/nano_ppo.py: it stands alone, computes what the package does, and its gate is strict."""

import ast
import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM

from lightning_modules import PPOPolicy
from lightning_modules.policies.kinds import LoRAPolicy
from lightning_modules.ppo.advantages import GAE
from lightning_modules.ppo.config import PPOConfig
from lightning_modules.ppo.reward_terms import FunctionReward
from tests.batches import loader, make_batch, make_trainer, settle

PATH = Path(__file__).parents[2] / "examples" / "nano_ppo.py"
SPEC: Any = importlib.util.spec_from_file_location("nano_ppo", PATH)
nano: Any = importlib.util.module_from_spec(SPEC)
sys.modules["nano_ppo"] = nano
SPEC.loader.exec_module(nano)

ROWS = [
    {"dialogue": "#Person1#: Tea?\n#Person2#: Yes, with milk.", "summary": "They have tea."},
    {"dialogue": "#Person1#: I lost my umbrella on the bus.", "summary": "It is lost."},
    {"dialogue": "#Person2#: No.", "summary": "No."},
    {"dialogue": "#Person1#: The train leaves at six, hurry!", "summary": "They hurry."},
]
SETTINGS = nano.Settings(
    max_new_tokens=8,
    temperature=0.7,
    gamma=0.9,
    lam=0.8,
    kl_coef=0.3,
    clip=0.02,
    value_weight=0.4,
    max_grad_norm=0.1,
)


@pytest.fixture(scope="module")
def adapter(t5: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A LoRA that computes something other than its backbone."""
    folder = tmp_path_factory.mktemp("adapter")
    lora = LoraConfig(task_type="SEQ_2_SEQ_LM", r=4, lora_alpha=8, target_modules=["q", "v"])
    model = get_peft_model(AutoModelForSeq2SeqLM.from_pretrained(t5), lora)
    move(model, seed=3)
    model.save_pretrained(folder)
    return str(folder)


def move(model: Any, seed: int, size: float = 0.3) -> None:
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn_like(parameter))


@pytest.fixture
def policy(t5: str, adapter: str) -> Any:
    """A fresh policy whose responses end early in part: one token in ten is EOS."""
    torch.manual_seed(0)
    policy = nano.load_policy(t5, adapter)
    add_eos_bias(policy.model)
    return policy


def test_it_imports_nothing_of_ours() -> None:
    imported = set()
    for node in ast.walk(ast.parse(PATH.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(str(node.module).split(".")[0])
    assert imported - sys.stdlib_module_names == {"torch", "transformers", "peft"}


def count_letters(predictions: list[str], *_: Any) -> list[float]:
    return [len(text) / 5 for text in predictions]


class Keep(L.Callback):
    """Keep the weights that a step starts from, and what it hands over."""

    def on_train_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:
        self.start = [p.detach().clone() for p in trained_weights(module)]

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
        self.step = outputs["step"]


def trained_weights(policy: Any) -> list[Tensor]:
    """The LoRA, by the names of its layers, and the value head."""
    lora = [(name, p) for name, p in policy.model.named_parameters() if p.requires_grad]
    return [p for _, p in sorted(lora, key=lambda each: each[0])] + [
        *policy.value_head.parameters()
    ]


def add_eos_bias(model: Any) -> None:
    """Make one token in ten EOS, so that responses end early in part."""
    head = model.get_base_model().lm_head
    bias = torch.zeros(head.weight.shape[0])
    bias[1] = 2.5
    head.bias = torch.nn.Parameter(bias, requires_grad=False)


def test_a_step_is_that_of_the_package(policy: Any, t5: str, adapter: str, tmp_path: Path) -> None:
    """PPOPolicy's own training step: rollout, advantages, losses, metrics and the update."""
    rate = 0.1
    module = settle(PPOPolicy(
        backbone=t5, adapter=adapter, policy=LoRAPolicy(r=4, alpha=8), reward_model=None,
        extra_rewards={"letters": FunctionReward(f"{__name__}.count_letters")},
        advantage=GAE(SETTINGS.gamma, SETTINGS.lam),
        optimizer=lambda groups: torch.optim.SGD(groups, lr=rate),
        ppo=PPOConfig(
            max_new_tokens=8, temperature=SETTINGS.temperature, kl_coef=SETTINGS.kl_coef,
            clip=SETTINGS.clip, value_clip=SETTINGS.clip, value_weight=SETTINGS.value_weight,
            max_grad_norm=SETTINGS.max_grad_norm, epochs=2, minibatch_size=100,
        ),
    ))  # fmt: skip
    add_eos_bias(module.model)
    move(module.model, seed=4)  # away from the reference, so that there is a KL
    module.gate_passed = True
    keep = Keep()
    make_trainer(tmp_path, callbacks=[keep]).fit(module, loader(make_batch(t5)))

    step, rollout = keep.step, keep.step.rollout
    for own, start in zip(trained_weights(policy), keep.start, strict=True):
        own.data.copy_(start)
    inputs = {name: getattr(rollout.prompts, name) for name in ("input_ids", "attention_mask")}
    prompts = {name: tensor[rollout.owner] for name, tensor in inputs.items()}
    mask, old = rollout.mask, (rollout.logprobs, rollout.ref_logprobs, rollout.values)
    assert not mask.all() and mask[:, 0].all()
    same(nano.response_mask(rollout.responses, 1), mask)
    with torch.no_grad():
        logprobs, values = nano.score(policy, prompts, rollout.responses, SETTINGS.temperature)
        with nano.as_reference(policy):
            reference, _ = nano.score(policy, prompts, rollout.responses, SETTINGS.temperature)
    for own, other in zip((logprobs, reference, values), old, strict=True):
        same(own * mask, other * mask)
    kl = logprobs - reference
    assert kl[mask].abs().max() > 1e-2
    rewards = nano.shape_rewards(step.scores, kl, mask, SETTINGS.kl_coef)
    same(rewards, step.rewards)
    advantages, returns = nano.gae(rewards, values, mask, SETTINGS)
    same(returns * mask, step.returns * mask)
    advantages = nano.whiten(advantages, mask)
    same(advantages, step.advantages)

    mine = nano.Rollout(prompts, rollout.responses, mask, logprobs, logprobs, reference, values)
    optimizer = torch.optim.SGD(trained_weights(policy), lr=rate)
    once = replace(SETTINGS, epochs=1, minibatch_size=100)
    epochs = [nano.update(policy, optimizer, mine, advantages, returns, once) for _ in range(2)]
    for own, other in zip(trained_weights(policy), trained_weights(module), strict=True):
        same(own, other)
        same(own.grad, other.grad)  # of the second epoch
    names = {
        "policy_loss": "policy/loss", "value_loss": "val/loss", "ratio": "policy/ratio",
        "approx_kl": "policy/approxkl",
    }  # fmt: skip
    assert step.metrics["ppo/policy/clipfrac"] > 0
    for own_name, name in names.items():
        mean = sum(metrics[own_name] for metrics in epochs) / 2
        assert mean == pytest.approx(float(step.metrics[f"ppo/{name}"]), abs=1e-5)


def same(own: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5)


def run_gate(policy: Any, change: Callable[[Any], Any] = lambda rollout: rollout) -> Any:
    rollout = nano.roll_out(policy, ROWS, SETTINGS)
    new_logprobs, _ = nano.score(policy, *rollout[:2], SETTINGS.temperature)
    return nano.gate(policy.model, change(rollout), new_logprobs, SETTINGS.temperature)


def test_the_gate_passes_and_the_adapter_is_part_of_the_reference(policy: Any) -> None:
    assert max(run_gate(policy).values()) <= 1e-4
    prompts = nano.encode_prompts(policy.tokenizer, ROWS)
    responses = torch.tensor([[5, 6, 1]] * len(ROWS))
    with policy.model.disable_adapter():
        bare, _ = nano.score(policy, prompts, responses, 1.0)
    with nano.as_reference(policy):
        reference, _ = nano.score(policy, prompts, responses, 1.0)
    assert (bare - reference).abs().max() > 1e-2


@pytest.mark.parametrize(
    "change",
    [
        lambda rollout: torch.roll(rollout.mask, 1, dims=1),
        lambda rollout: rollout.mask & (rollout.responses != 1),
        lambda rollout: torch.ones_like(rollout.mask),
    ],
    ids=["shifted", "without EOS", "padding too"],
)
def test_the_gate_refuses_a_wrong_mask(policy: Any, change: Callable[[Any], Tensor]) -> None:
    with pytest.raises(RuntimeError, match=r"wrongly masked tokens +[1-9]"):
        run_gate(policy, lambda rollout: rollout._replace(mask=change(rollout)))


def test_the_gate_refuses_dropout(policy: Any) -> None:
    policy.model.train()
    with pytest.raises(RuntimeError, match="gate"):
        run_gate(policy)


def test_it_runs_and_moves_only_the_policy(
    t5: str, roberta: str, adapter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    small = partial(nano.Settings, steps=2, batch_size=4, minibatch_size=3, max_new_tokens=5)
    monkeypatch.setattr(nano, "Settings", small)
    monkeypatch.setattr(nano, "train_adapter", partial(nano.train_adapter, steps=2, size=2))
    policies = []
    load_policy = nano.load_policy
    monkeypatch.setattr(
        nano, "load_policy", lambda *a: policies.append(load_policy(*a)) or policies[-1]
    )
    for more in ([], ["--adapter", adapter]):
        models = ["--backbone", t5, "--judge", roberta, "--data", str(data)]
        monkeypatch.setattr(sys, "argv", ["nano_ppo.py", *models, *more])
        nano.main()
    said = capsys.readouterr()
    assert said.out.count("gate:") == 2
    assert "tied weights" not in said.err
    start = load_policy(t5, adapter).model.state_dict()
    end = policies[-1].model.state_dict()
    moved = {name for name, value in start.items() if not torch.equal(value, end[name])}
    assert moved and all(".policy." in name for name in moved)

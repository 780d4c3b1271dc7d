"""examples/nano_ppo.py: it stands alone, computes what the package does, and its gate is strict."""

import ast
import importlib.util
import json
import sys
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM

from lightning_modules.ppo import advantages as package_advantages
from lightning_modules.ppo import kl as package_kl
from lightning_modules.ppo import losses as package_losses
from lightning_modules.ppo import rewards as package_rewards

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
    max_new_tokens=8, temperature=0.7, gamma=0.9, lam=0.8, kl_coef=0.3, clip=0.02, value_weight=0.4
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
    head = policy.model.get_base_model().lm_head
    bias = torch.zeros(head.weight.shape[0])
    bias[1] = 2.5
    head.bias = torch.nn.Parameter(bias, requires_grad=False)
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


def test_a_step_is_that_of_the_package(policy: Any) -> None:
    """Loss, gradients and metrics of a mini-batch, from the package's pure functions."""
    move(policy.model, seed=4)  # away from the reference, so that there is a KL
    rollout = nano.roll_out(policy, ROWS, SETTINGS)
    mask, scores = rollout.mask, torch.tensor([1.5, -0.5, 0.25, 0.0])
    assert not mask.all() and mask[:, 0].all()
    kl = package_kl.k1(rollout.logprobs, rollout.ref_logprobs)
    assert kl[mask].abs().max() > 1e-2
    rewards = package_rewards.shape_rewards(scores, kl, mask, SETTINGS.kl_coef)
    same(rewards, nano.shape_rewards(scores, kl, mask, SETTINGS.kl_coef))
    advantages, returns = package_advantages.gae(
        rewards, rollout.values, mask, SETTINGS.gamma, SETTINGS.lam
    )
    own_advantages, own_returns = nano.gae(rewards, rollout.values, mask, SETTINGS)
    same(advantages, own_advantages)
    same(returns, own_returns)
    advantages = package_advantages.whiten(advantages, mask)
    same(advantages, nano.whiten(own_advantages, mask))

    move(policy.model, seed=5, size=0.02)  # away from the old policy, so that ratios are clipped
    loss, metrics = nano.ppo_loss(policy, rollout, advantages, returns, SETTINGS)
    trained = [p for p in policy.model.parameters() if p.requires_grad]
    trained += policy.value_head.parameters()
    gradients = torch.autograd.grad(loss, trained)

    logprobs, values = nano.score(policy, *rollout[:2], SETTINGS.temperature)
    clip, tokens = SETTINGS.clip, mask.sum()
    terms = package_losses.policy_loss(logprobs, rollout.logprobs, advantages, mask, clip)
    of_values = package_losses.value_loss(values, rollout.values, returns, mask, clip)
    expected = (terms.loss + SETTINGS.value_weight * of_values) / tokens
    assert terms.clipped > 0
    same(loss, expected)
    for own, other in zip(gradients, torch.autograd.grad(expected, trained), strict=True):
        same(own, other)
    figures = {
        "policy_loss": terms.loss, "value_loss": of_values, "ratio": terms.ratio,
        "approx_kl": terms.approx_kl,
    }  # fmt: skip
    assert metrics == pytest.approx({n: float(x / tokens) for n, x in figures.items()}, abs=1e-5)


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


@contextmanager
def as_backbone(policy: Any) -> Any:
    with policy.model.disable_adapter():
        yield


def shift_mask(rollout: Any) -> Any:
    return rollout._replace(mask=torch.roll(rollout.mask, 1, dims=1))


def drop_eos(rollout: Any) -> Any:
    return rollout._replace(mask=rollout.mask & (rollout.responses != 1))


def mask_padding(rollout: Any) -> Any:
    return rollout._replace(mask=torch.ones_like(rollout.mask))


@pytest.mark.parametrize("change", [shift_mask, drop_eos, mask_padding])
def test_the_gate_refuses_a_wrong_mask(policy: Any, change: Any) -> None:
    with pytest.raises(RuntimeError, match=r"wrongly masked tokens +[1-9]"):
        run_gate(policy, change)


def test_the_gate_refuses_a_reference_without_the_adapter(
    policy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nano, "as_reference", as_backbone)
    with pytest.raises(RuntimeError, match="gate"):
        run_gate(policy)


def test_the_gate_refuses_a_filtered_sampler(policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    generate = policy.model.generate
    filtered = lambda **settings: generate(**(settings | {"top_k": 50}))  # noqa: E731
    monkeypatch.setattr(policy.model, "generate", filtered)
    with pytest.raises(RuntimeError, match="sampler differs"):
        run_gate(policy)


def test_the_gate_refuses_dropout(policy: Any) -> None:
    policy.model.train()
    with pytest.raises(RuntimeError, match="gate"):
        run_gate(policy)


def test_the_gate_refuses_a_shifted_score(policy: Any) -> None:
    def shift(rollout: Any) -> Any:
        shifted = torch.roll(rollout.logprobs, 1, dims=1)
        return rollout._replace(logprobs=shifted, ref_logprobs=shifted, sampled_logprobs=shifted)

    with pytest.raises(RuntimeError, match="own forward pass"):
        run_gate(policy, shift)


def test_it_runs_and_moves_only_the_policy(
    t5: str, roberta: str, adapter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    small = partial(nano.Settings, steps=2, batch_size=4, minibatch_size=3, max_new_tokens=5)
    monkeypatch.setattr(nano, "Settings", small)
    monkeypatch.setattr(nano, "train_adapter", partial(nano.train_adapter, steps=2, size=2))
    policies = []
    load_policy = nano.load_policy
    monkeypatch.setattr(
        nano, "load_policy", lambda *a: policies.append(load_policy(*a)) or policies[-1]
    )
    for more in ([], ["--adapter", adapter]):
        models = ["--backbone", t5, "--judge", roberta, "--data", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", ["nano_ppo.py", *models, *more])
        nano.main()
    assert capsys.readouterr().out.count("before") == 6
    start = load_policy(t5, adapter).model.state_dict()
    end = policies[-1].model.state_dict()
    moved = {name for name, value in start.items() if not torch.equal(value, end[name])}
    assert moved and all(".policy." in name for name in moved)

"""The gate: every fault that it is for makes it stop the run."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lightning_modules import adapters
from lightning_modules.acceleration import accelerate
from lightning_modules.backbones import load_backbone, set_dropout
from lightning_modules.lora_adapter import LoRASettings, attach_lora
from lightning_modules.ppo import head, invariants, rollout, sampling
from lightning_modules.ppo.invariants import BF16, FP32, GateError, StepZero, check, measure
from lightning_modules.ppo.rollout import roll_out
from lightning_modules.ppo.sampling import Sampling
from lightning_modules.ppo.token_scores import Prompts, encode, score_tokens
from tests.batches import make_batch
from tests.models import move_lora

SETTINGS = Sampling(max_new_tokens=12, temperature=1.0, eos_id=1, pad_id=0)
GOOD = StepZero(kl=0.0, log_ratio=0.0, mask_errors=0, sampler_gap=1e-6)


def fresh_policy(
    t5: str, dropout: float = 0.0, targets: Any = ("q", "v"), quick: bool = True
) -> Any:
    torch.manual_seed(0)
    model = attach_lora(load_backbone(t5), LoRASettings(r=4, alpha=8, target_modules=targets))
    set_dropout(model, 0.0)
    if dropout:
        model.get_base_model().decoder.dropout.p = dropout
    if quick:
        accelerate(model)
    return model.train()


def make_prompts(t5: str) -> Prompts:
    batch = make_batch(t5)
    return Prompts(batch["input_ids"], batch["attention_mask"])


def take(model: Any, t5: str) -> StepZero:
    torch.manual_seed(1)
    shared = not adapters.encoder_is_trained(model)
    return measure(model, make_prompts(t5), SETTINGS, shared_encoder=shared, minibatch_size=4)


def test_a_right_policy_passes(t5: str) -> None:
    found = take(fresh_policy(t5), t5)
    check(found, FP32)
    assert found.kl == 0.0


@pytest.mark.parametrize("targets", [("q", "v"), r".*decoder.*\.(q|v)"], ids=["all", "decoder"])
@pytest.mark.parametrize("quick", [True, False])
def test_the_passes_that_are_reused_agree_in_bf16(t5: str, targets: Any, quick: bool) -> None:
    """What docs/ppo.md says: KL exact, the update's ratio and the sampler within the bounds."""
    model = fresh_policy(t5, targets=targets, quick=quick)
    with torch.autocast("cpu", torch.bfloat16):
        found = take(model, t5)
        drawn = roll_out(model, make_prompts(t5), SETTINGS, reuse_sampler=False)
    check(found, BF16)
    assert found.kl == 0.0
    # It was bf16 indeed: in fp32 the same tokens have other log-probabilities.
    said = (drawn.responses, drawn.mask, SETTINGS.temperature)
    with torch.no_grad():
        exact = score_tokens(model, encode(model, drawn.prompts), *said).logprobs
    assert 1e-3 < (drawn.logprobs - exact).abs().max() < BF16.sampler_gap


@pytest.mark.parametrize(
    ("fault", "word"),
    [
        ({"kl": 0.01}, "KL"),
        ({"kl": -0.01}, "KL"),
        ({"kl": math.nan}, "KL"),
        ({"log_ratio": 0.01}, "dropout"),
        ({"log_ratio": math.nan}, "dropout"),
        ({"mask_errors": 1}, "mask"),
        ({"sampler_gap": 0.01}, "sampler"),
    ],
)
def test_each_figure_can_stop_the_run(fault: dict[str, Any], word: str) -> None:
    with pytest.raises(GateError, match=word) as error:
        check(GOOD._replace(**fault), FP32)
    assert str(error.value).count("\n- ") == 1
    assert "StepZero(" in str(error.value)


def test_all_faults_are_named_together() -> None:
    with pytest.raises(GateError) as error:
        check(StepZero(29.0, 1.0, 3, 2.0), FP32)
    assert str(error.value).count("\n- ") == 4


def test_dropout_is_seen(t5: str) -> None:
    with pytest.raises(GateError, match="dropout"):
        check(take(fresh_policy(t5, dropout=0.1), t5), FP32)


def test_a_wrong_reference_is_seen(t5: str) -> None:
    model = fresh_policy(t5)
    move_lora(model)
    # A trained adapter with the bare backbone as reference: what the original notebook did.
    assert adapters.REFERENCE not in model.peft_config
    with pytest.raises(GateError, match="KL"):
        check(take(model, t5), FP32)


def likeliest_only(model: Any, hidden: Any) -> Any:
    logits = head.head_logits(model, hidden)
    return logits.masked_fill(logits < logits.topk(50).values[..., -1:], -math.inf)


def sharper(model: Any, hidden: Any) -> Any:
    return head.head_logits(model, hidden) / 0.5


@pytest.mark.parametrize("fault", [likeliest_only, sharper], ids=["top_k", "temperature"])
def test_another_distribution_in_the_sampler_is_seen(
    t5: str, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., Any]
) -> None:
    monkeypatch.setattr(sampling, "head_logits", fault)
    with pytest.raises(GateError, match="sampler and scorer"):
        check(take(fresh_policy(t5), t5), FP32)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda responses, eos: ((responses != 0), (responses == eos).any(1)),
        lambda responses, eos: ((responses != eos) & (responses != 0), (responses == eos).any(1)),
    ],
    ids=["pad ids left out", "EOS left out"],
)
def test_a_wrong_mask_is_seen(
    t5: str, monkeypatch: pytest.MonkeyPatch, wrong: Callable[..., Any]
) -> None:
    responses = torch.tensor([[5, 0, 1, 0], [5, 6, 7, 1]])
    assert invariants.count_mask_errors(responses, wrong(responses, 1)[0], 1) >= 1
    assert invariants.count_mask_errors(responses, rollout.response_mask(responses, 1)[0], 1) == 0

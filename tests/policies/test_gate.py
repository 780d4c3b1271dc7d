"""The gate: right policies of every architecture pass, and every fault that it is for stops."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import peft
import pytest
import torch
from jsonargparse import Namespace
from peft import LoraConfig, TaskType, get_peft_model

from common.imports import instantiate
from lightning_modules.backbones import (
    Prompts,
    Sampling,
    encoder_decoder,
    load_backbone,
    record_head,
    sampling,
    set_dropout,
)
from lightning_modules.backbones.encoder_decoder import EncoderDecoder
from lightning_modules.policies import gate
from lightning_modules.policies.adapters import POLICY, attach_adapter, reference_backbone
from lightning_modules.policies.gate import BF16, FP32, GateError, GateFigures, check, measure
from lightning_modules.policies.kinds import AdapterPolicy, FullPolicy, LoRAPolicy, SoftPromptPolicy
from lightning_modules.policies.lora import LoRASettings
from lightning_modules.ppo import rollout
from tests.backbones.models import ARCHITECTURES, UNCACHED, build, make_prompts
from tests.batches import make_batch
from tests.models import move_lora, wrap

SETTINGS = Sampling(max_new_tokens=16)
GOOD = GateFigures(0.0, 0.0, 0.0, 0, 1e-6, 0.1)


def fresh_policy(t5: str) -> Any:
    torch.manual_seed(0)
    model = attach_adapter(load_backbone(t5), LoRASettings(r=4, alpha=8).config())
    set_dropout(model, 0.0)
    return model.train()


def take(model: Any, t5: str, reference: Any = None, seed: int = 1) -> GateFigures:
    torch.manual_seed(seed)
    batch, backbone = make_batch(t5), wrap(model)
    prompts = Prompts(batch["input_ids"], batch["attention_mask"])
    opened = partial(reference_backbone, backbone, reference)
    return measure(backbone, opened, prompts, SETTINGS, minibatch_size=4)


def test_a_right_policy_passes(t5: str) -> None:
    found = take(fresh_policy(t5), t5)
    check(found, FP32)
    assert found.kl == 0.0


@pytest.mark.parametrize(
    "kind",
    [
        LoRAPolicy(r=4, alpha=8, use_dora=True),
        SoftPromptPolicy(5),
        FullPolicy(),
        AdapterPolicy(peft.LoraConfig(init_lora_weights="pissa")),
        AdapterPolicy(peft.IA3Config()),
        AdapterPolicy(peft.VeraConfig()),
        AdapterPolicy(peft.AdaLoraConfig(total_step=100)),
        AdapterPolicy(peft.PromptEncoderConfig(num_virtual_tokens=5, encoder_hidden_size=8)),
    ],
    ids=["DoRA", "soft prompt", "full", "PiSSA", "IA3", "VeRA", "AdaLoRA", "P-tuning"],
)
def test_every_kind_of_policy_passes(t5: str, kind: Any) -> None:
    model, reference = kind.attach(load_backbone(t5), None)
    for each in (model, reference):
        if each is not None:
            set_dropout(each.train(), 0.0)
    check(take(model, t5, reference), FP32)


def test_a_policy_takes_a_peft_config_by_its_class() -> None:
    config = Namespace(class_path="peft.IA3Config", init_args=Namespace(feedforward_modules=["wo"]))
    path = "lightning_modules.policies.kinds.AdapterPolicy"
    policy = instantiate(Namespace(class_path=path, init_args=Namespace(config=config)))
    assert isinstance(policy, AdapterPolicy)
    assert policy.config.feedforward_modules == {"wo"}


def test_a_right_policy_passes_in_bf16(t5: str) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        found = take(fresh_policy(t5), t5)
    check(found, BF16)
    assert found.kl == 0.0
    assert found.sampler_gap > 1e-3  # it was bf16 indeed


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_passes_or_is_refused(name: str) -> None:
    model, tokenizer = build(name)
    record_head(model)
    config = LoraConfig(
        task_type=TaskType.SEQ_2_SEQ_LM, r=4,
        target_modules=["q", "v", "q_proj", "v_proj", "query", "value", "query_proj", "value_proj"],
    )  # fmt: skip
    policy = get_peft_model(model, config, adapter_name=POLICY)
    set_dropout(policy, 0.0)
    backbone = EncoderDecoder(policy.train(), tokenizer)
    prompts, opened = Prompts(*make_prompts(backbone.pad_id)), partial(reference_backbone, backbone)
    torch.manual_seed(3)
    if name in UNCACHED:
        with pytest.raises(GateError, match="cached passes"):
            gate.pass_gate(backbone, opened, prompts, SETTINGS, 4, is_exact=True)
    else:
        gate.pass_gate(backbone, opened, prompts, SETTINGS, 4, is_exact=True)


@pytest.mark.parametrize(
    ("fault", "word"),
    [
        ({"plain_gap": 0.01}, "own forward pass"),
        ({"plain_gap": math.inf}, "own forward pass"),
        ({"kl": 0.01}, "reference"),
        ({"kl": math.nan}, "reference"),
        ({"log_ratio": 0.01}, "dropout"),
        ({"log_ratio": math.nan}, "dropout"),
        ({"mask_errors": 1}, "mask"),
        ({"sampler_gap": 0.01}, "another temperature"),
        ({"filtering": 40.0}, "unlikely tokens"),
    ],
)
def test_each_figure_can_stop_the_run(fault: dict[str, Any], word: str) -> None:
    with pytest.raises(GateError, match=word) as error:
        check(GOOD._replace(**fault), FP32)
    assert str(error.value).count("\n- ") == 1
    assert "GateFigures(" in str(error.value)


def test_the_log_says_in_words_what_passed() -> None:
    assert GOOD._replace(sampler_gap=9.8e-06).in_words() == (
        "The policy passed the gate: KL to the reference 0, log-ratio 0, mask exact, scores equal "
        "the model's own forward pass (0), sampler within 9.8e-06"
    )


@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_a_filter_is_told_from_chance(
    t5: str, monkeypatch: pytest.MonkeyPatch, scale: float
) -> None:
    """Flat and peaked distributions, several seeds: correct samplers are far from the limit."""
    model = fresh_policy(t5)
    model.get_base_model().lm_head.weight.data.mul_(scale)
    correct = [take(model, t5, seed=seed).filtering for seed in range(8)]
    filter_silently(monkeypatch, model)
    filtered = [take(model, t5, seed=seed).filtering for seed in range(8)]
    assert max(correct) < 15 < FP32.filtering < 100 < min(filtered)


def test_all_faults_are_named_together() -> None:
    with pytest.raises(GateError) as error:
        check(GateFigures(1.0, 29.0, 1.0, 3, 2.0, 99.0), FP32)
    assert str(error.value).count("\n- ") == 6


# Deliberate faults ------------------------------------------------------------------------------


def shift_targets(patch: pytest.MonkeyPatch, model: Any) -> None:
    """Scorer: log-probabilities of the tokens after, not of the tokens."""
    real = EncoderDecoder.score

    def score(self: Any, context: Any, responses: Any, *more: Any, **other: Any) -> Any:
        return real(self, context, responses.roll(-1, dims=1), *more, **other)

    patch.setattr(EncoderDecoder, "score", score)


def scale_states(patch: pytest.MonkeyPatch, model: Any) -> None:
    """Head: scorer and sampler alike apply it to states that are too small (T5 v1.0's scale)."""
    real = EncoderDecoder._decode

    def decode(self: Any, *given: Any, **other: Any) -> Any:
        logits, hidden = real(self, *given, **other)
        return logits * 0.5, hidden

    patch.setattr(EncoderDecoder, "_decode", decode)


def embed_wrongly(patch: pytest.MonkeyPatch, model: Any) -> None:
    """Encoder input by hand, without the model's scale: what Pegasus suffered from."""
    real = EncoderDecoder.read

    def read(self: Any, prompts: Any) -> Any:
        context = real(self, prompts)
        return context._replace(hidden=context.hidden * 0.9)

    patch.setattr(EncoderDecoder, "read", read)


def change_draws(
    patch: pytest.MonkeyPatch, change: Callable[[torch.Tensor], torch.Tensor], honest: bool
) -> None:
    """Sampler: draw from other probabilities, and report those (honest) or the model's."""
    real_draw, real_sample = sampling.draw, sampling.sample_responses
    if not honest:
        patch.setattr(sampling, "draw", lambda chances: real_draw(change(chances)))
        return

    def sample(decoder: Any, *given: Any, **other: Any) -> Any:
        step = decoder.step

        def changed(tokens: Any) -> Any:
            logits, hidden = step(tokens)
            return change(logits.softmax(-1)).log(), hidden

        decoder.step = changed
        return real_sample(decoder, *given, **other)

    patch.setattr(encoder_decoder, "sample_responses", sample)


def keep_likely(chances: torch.Tensor) -> torch.Tensor:
    kept = chances >= chances.topk(20).values[..., -1:]
    return chances * kept / (chances * kept).sum(-1, keepdim=True)


def filter_draws(patch: pytest.MonkeyPatch, model: Any) -> None:
    change_draws(patch, keep_likely, honest=True)


def filter_silently(patch: pytest.MonkeyPatch, model: Any) -> None:
    change_draws(patch, keep_likely, honest=False)


def filter_nucleus_silently(patch: pytest.MonkeyPatch, model: Any) -> None:
    def keep_nucleus(chances: torch.Tensor) -> torch.Tensor:
        ordered, order = chances.sort(-1, descending=True)
        kept = ordered * (ordered.cumsum(-1) - ordered < 0.9)
        return torch.zeros_like(chances).scatter(-1, order, kept)

    change_draws(patch, keep_nucleus, honest=False)


def cool_silently(patch: pytest.MonkeyPatch, model: Any) -> None:
    change_draws(patch, lambda chances: chances.pow(4), honest=False)


def cool_draws(patch: pytest.MonkeyPatch, model: Any) -> None:
    change_draws(patch, lambda chances: (chances.log() * 2).softmax(-1), honest=True)


def mask_padding(patch: pytest.MonkeyPatch, model: Any) -> None:
    patch.setattr(
        rollout, "response_mask", lambda tokens, eos: (tokens != eos, (tokens == eos).any(1))
    )


def skip_first(patch: pytest.MonkeyPatch, model: Any) -> None:
    real = rollout.response_mask

    def mask(tokens: Any, eos: int) -> Any:
        marks, finished = real(tokens, eos)
        return marks.index_fill(1, torch.tensor([0]), False), finished

    patch.setattr(rollout, "response_mask", mask)


def leave_dropout(patch: pytest.MonkeyPatch, model: Any) -> None:
    model.get_base_model().decoder.dropout.p = 0.1


def leave_attention_dropout(patch: pytest.MonkeyPatch, model: Any) -> None:
    model.get_base_model().encoder.block[0].layer[0].SelfAttention.dropout = 0.3


def use_bare_backbone(patch: pytest.MonkeyPatch, model: Any) -> None:
    """A trained adapter whose reference is the bare backbone: what the original notebook did."""
    move_lora(model)


FAULTS = [
    (shift_targets, "plain_gap"),
    (scale_states, "plain_gap"),
    (embed_wrongly, "plain_gap"),
    (filter_draws, "sampler_gap"),
    (cool_draws, "sampler_gap"),
    (filter_silently, "filtering"),
    (filter_nucleus_silently, "filtering"),
    (cool_silently, "filtering"),
    (mask_padding, "mask_errors"),
    (skip_first, "mask_errors"),
    (leave_dropout, "log_ratio"),
    (leave_attention_dropout, "log_ratio"),
    (use_bare_backbone, "kl"),
]


@pytest.mark.parametrize(
    ("fault", "figure"), FAULTS, ids=lambda each: getattr(each, "__name__", each)
)
def test_a_deliberate_fault_stops_the_run(
    t5: str, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., None], figure: str
) -> None:
    model = fresh_policy(t5)
    bias = torch.zeros(model.get_base_model().lm_head.weight.shape[0])
    bias[1] = 3.0  # responses end at several lengths
    model.get_base_model().lm_head.bias = torch.nn.Parameter(bias, requires_grad=False)
    fault(monkeypatch, model)
    with pytest.raises(GateError, match=f"\n- {figure} "):
        check(take(model, t5), FP32)


@pytest.mark.parametrize("kind", [LoRAPolicy(r=4), FullPolicy()], ids=["lora", "full"])
def test_text_trains_nothing_that_reads_images(kind: Any) -> None:
    """Every trained weight of T5Gemma 2 gets a gradient, as DDP demands."""
    model, tokenizer = build("t5gemma2")
    policy, _ = kind.attach(model, None)
    if isinstance(kind, LoRAPolicy):
        move_lora(policy)
    backbone = EncoderDecoder(policy, tokenizer)
    ids, mask = make_prompts(backbone.pad_id)
    loss, _ = backbone.token_loss({"input_ids": ids, "attention_mask": mask, "labels": ids})
    loss.backward()
    trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    assert any("encoder" in name for name in trained)
    without = [n for n, p in trained.items() if p.grad is None]
    assert not without
    assert not any("vision_tower" in name or "projector" in name for name in trained)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_soft_prompt_is_right_or_refused_on_every_architecture(name: str) -> None:
    model, tokenizer = build(name)
    record_head(model)
    try:
        policy, _ = SoftPromptPolicy(4, "random").attach(model, None)
    except ValueError as error:
        assert str(error).startswith("soft prompts do not work with ")
        assert str(error).endswith("use a LoRA")
        assert name not in ("t5-v1.1", "mt5", "umt5-tied", "bart", "led", "mbart")
        return
    set_dropout(policy, 0.0)
    backbone = EncoderDecoder(policy.train(), tokenizer)
    prompts, opened = Prompts(*make_prompts(backbone.pad_id)), partial(reference_backbone, backbone)
    torch.manual_seed(3)
    found = measure(backbone, opened, prompts, SETTINGS)
    assert found.plain_gap < 1e-3 and found.kl < 1e-3

"""Acceleration computes what the plain model computes, and leaves what is saved as it was."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, BartConfig, BartForConditionalGeneration
from transformers.activations import NewGELUActivation
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.t5.modeling_t5 import T5LayerNorm

from datamodules.batching import IGNORED_LABEL
from lightning_modules import FullFT, LoRA, SoftPrompt
from lightning_modules.acceleration import accelerate, linear
from lightning_modules.acceleration.elementwise import FastDropout, FastNorm, attend, drop
from tests.batches import make_batch, settle
from tests.models import move_lora

MAKE: dict[str, Any] = {
    "full": lambda t5, **settings: FullFT(backbone=t5, **settings),
    "lora": lambda t5, **settings: LoRA(backbone=t5, r=4, lora_dropout=0.0, **settings),
    "soft_prompt": lambda t5, **settings: SoftPrompt(backbone=t5, virtual_tokens=3, **settings),
}


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", MAKE)
def test_loss_and_gradients_equal_those_of_the_plain_model(
    method: str, checkpointing: bool, t5: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr(linear, "LEAST_WORK", 1)
    fast = settle(MAKE[method](t5, dropout=0.0, gradient_checkpointing=checkpointing))
    plain = settle(MAKE[method](t5, dropout=0.0, acceleration=False))
    move_lora(fast, std=0.1)
    plain.load_state_dict(fast.state_dict())
    assert any(isinstance(each, FastDropout) for each in fast.model.modules())
    assert not any(isinstance(each, FastDropout) for each in plain.model.modules())
    batch = make_batch(t5)
    assert (batch["labels"] == IGNORED_LABEL).any()
    loss, tokens = fast.sum_losses(batch)
    expected, same_tokens = plain.sum_losses(batch)
    assert int(tokens) == int(same_tokens)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    found, wanted = gradients(fast, loss), gradients(plain, expected)
    assert found.keys() == wanted.keys() != set()
    errors = {name: (found[name] - wanted[name]).norm() / wanted[name].norm() for name in wanted}
    assert max(errors.values()) < 3e-6, errors


def test_both_generate_the_same_texts(t5: str) -> None:
    batch = make_batch(t5)
    modules = [settle(FullFT(t5, acceleration=on)).eval() for on in (True, False)]
    texts = [module.predict_step(batch, 0) for module in modules]
    assert texts[0] == texts[1]


def test_state_and_config_stay_as_they_were(t5: str, tmp_path: Path) -> None:
    plain = AutoModelForSeq2SeqLM.from_pretrained(t5)
    fast = AutoModelForSeq2SeqLM.from_pretrained(t5)
    accelerate(fast)
    assert list(fast.state_dict()) == list(plain.state_dict())
    assert not any(isinstance(each, NewGELUActivation) for each in fast.modules())
    for model, name in ((plain, "plain"), (fast, "fast")):
        model.save_pretrained(tmp_path / name)
    configs = [(tmp_path / name / "config.json").read_text() for name in ("plain", "fast")]
    assert configs[0] == configs[1]


def test_another_architecture_trains_alike() -> None:
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=50, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
        max_position_embeddings=32, dropout=0.0, attention_dropout=0.5,
    )  # fmt: skip
    model = BartForConditionalGeneration(config)
    tokens = torch.randint(3, 50, (2, 9))
    arguments = {"input_ids": tokens, "labels": tokens[:, :5].clone()}
    expected = model.eval()(**arguments).loss
    accelerate(model)
    torch.testing.assert_close(model(**arguments).loss, expected)


# Dropout ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_its_share_and_keeps_the_mean(rate: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    rows, columns = 1001, 999  # four does not divide the number of elements
    dropped = drop(torch.ones(rows, columns, dtype=dtype), rate)
    assert dropped.dtype == dtype
    values = dropped.unique().float()
    torch.testing.assert_close(
        values, torch.tensor([0.0, 1 / (1 - rate)]), rtol=1e-4 if dtype == torch.float32 else 4e-3,
        atol=0,
    )  # fmt: skip
    zeros = (dropped == 0).float()
    # Five standard deviations of a share, over all, and of the worst of the rows and columns.
    for share, count in (
        (zeros.mean(), rows * columns),
        (zeros.mean(0), rows),
        (zeros.mean(1), columns),
    ):
        allowed = 5 * (rate * (1 - rate) / count) ** 0.5
        assert (share - rate).abs().max() < allowed


def test_neighbors_are_dropped_independently() -> None:
    """Four of them share a draw of 64 bits."""
    torch.manual_seed(0)
    zeros = (drop(torch.ones(400_000), 0.3) == 0).float().view(-1, 4)
    correlations = torch.corrcoef(zeros.T) - torch.eye(4)
    assert correlations.abs().max() < 5 / 100_000**0.5


def test_the_gradient_of_dropout_is_its_mask() -> None:
    torch.manual_seed(0)
    values = torch.randn(50, 30, requires_grad=True)
    dropped = drop(values, 0.25)
    dropped.sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad, dropped.detach() / values.detach())


def test_dropout_follows_the_seed_and_the_mode() -> None:
    layer = FastDropout(0.5)
    values = torch.ones(64)
    torch.manual_seed(3)
    first, second = layer(values), layer(values)
    torch.manual_seed(3)
    assert torch.equal(layer(values), first)
    assert not torch.equal(first, second)
    assert torch.equal(layer.eval()(values), values)


# Attention --------------------------------------------------------------------------------------


@pytest.mark.parametrize("queries", [1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [True, False])
def test_attention_equals_sdpa(queries: int, dtype: torch.dtype, masked: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Module()
    layer.is_causal = False  # type: ignore[assignment]
    query = torch.randn(2, 3, queries, 4, dtype=dtype)
    key, value = (torch.randn(2, 3, 7, 4, dtype=dtype) for _ in range(2))
    bias = torch.randn(1, 3, queries, 7)
    mask = (torch.arange(7) < torch.tensor([[7], [4]]))[:, None, None] if masked else None
    wanted, _ = sdpa_attention_forward(
        layer, query, key, value, mask, scaling=0.5, position_bias=bias.to(dtype)
    )
    found, _ = attend(layer, query, key, value, mask, scaling=0.5, position_bias=bias)
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


def test_attention_drops_weights_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer = nn.Module()
    query, key, value = (torch.randn(1, 1, 6, 4) for _ in range(3))
    mask = torch.ones(1, 1, 6, 6, dtype=torch.bool)
    wanted, _ = attend(layer, query, key, value, mask)
    drawn = [attend(layer, query, key, value, mask, dropout=0.3)[0] for _ in range(4000)]
    assert not torch.equal(drawn[0], drawn[1])
    torch.testing.assert_close(torch.stack(drawn).mean(0), wanted, rtol=0, atol=0.06)


# Norms and linear layers ------------------------------------------------------------------------


@pytest.mark.parametrize("trained", [True, False])
def test_norms_equal_t5s(trained: bool) -> None:
    torch.manual_seed(0)
    plain = T5LayerNorm(24)
    nn.init.normal_(plain.weight).requires_grad_(trained)
    values = (3 * torch.randn(5, 7, 24)).requires_grad_()
    weights = torch.randn(5, 7, 24)
    needed = [values, *(p for p in plain.parameters() if p.requires_grad)]
    pairs = []
    for layer in (FastNorm(plain), plain):
        output = layer(values)
        pairs.append([output, *torch.autograd.grad(output, needed, weights)])
    torch.testing.assert_close(*pairs)
    half = values.detach().bfloat16()
    assert torch.equal(FastNorm(plain)(half), plain(half))


@pytest.mark.parametrize("trained", ["nothing", "input", "weights", "all"])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_equal_torchs(trained: str, bias: bool, monkeypatch: Any) -> None:
    monkeypatch.setattr(linear, "LEAST_WORK", 1)
    torch.manual_seed(0)
    plain = nn.Linear(40, 24, bias=bias).requires_grad_(trained in ("weights", "all"))
    model = nn.Sequential(plain)
    values = torch.randn(3, 7, 40, requires_grad=trained in ("input", "all"))
    wanted = model(values)
    linear.use_linear(model)
    assert type(model[0]) is linear.FastLinear and model[0].weight is plain.weight
    found = model(values)
    torch.testing.assert_close(found, wanted)
    needed = [each for each in (values, *plain.parameters()) if each.requires_grad]
    if needed:
        weights = torch.randn(7, 3, 24).transpose(0, 1)  # a gradient need not be contiguous
        pairs = [torch.autograd.grad(each, needed, weights) for each in (found, wanted)]
        torch.testing.assert_close(*pairs)
    else:
        assert not found.requires_grad


def test_linear_layers_follow_autocast(monkeypatch: Any) -> None:
    monkeypatch.setattr(linear, "LEAST_WORK", 1)
    model = nn.Sequential(nn.Linear(8, 8))
    values = torch.randn(4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        wanted = model(values)
        linear.use_linear(model)
        assert torch.equal(model(values), wanted)


def test_a_tied_head_stays_tied(t5: str) -> None:
    model = AutoModelForSeq2SeqLM.from_pretrained(t5)
    model.set_output_embeddings(nn.Linear(4, 4, bias=False))
    model.lm_head.weight = model.get_input_embeddings().weight
    linear.use_linear(model)
    assert type(model.lm_head) is linear.FastLinear
    assert model.lm_head.weight is model.get_input_embeddings().weight

"""The quicker training step computes what the plain one computes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, BartConfig, BartForConditionalGeneration
from transformers.activations import NewGELUActivation
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from datamodules.batching import IGNORED_LABEL, Batch
from lightning_modules import FullFT, LoRA, SoftPrompt, kernels, linear
from lightning_modules.kernels import QuickDropout, attend, drop, fuse, quicken
from tests.batches import loader, make_batch, make_trainer, settle
from tests.models import move_lora

MAKE: dict[str, Any] = {
    "full": lambda t5, **settings: FullFT(backbone=t5, **settings),
    "lora": lambda t5, **settings: LoRA(backbone=t5, r=4, lora_dropout=0.0, **settings),
    "soft_prompt": lambda t5, **settings: SoftPrompt(backbone=t5, virtual_tokens=3, **settings),
}


def plain_loss(model: Any, batch: Batch) -> Tensor:
    """Logits at every place, and transformers' own loss, as a sum."""
    output = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]
    )
    return output.loss * (batch["labels"] != IGNORED_LABEL).sum()


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# The loss ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", MAKE)
def test_loss_and_gradients_are_those_of_the_plain_model(
    method: str, t5: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "LEAST_WORK", 0)
    module = settle(MAKE[method](t5, dropout=0.0))
    monkeypatch.setattr("lightning_modules.base.quicken", lambda model: model)
    plain = settle(MAKE[method](t5, dropout=0.0))
    move_lora(module, std=0.1)
    plain.load_state_dict(module.state_dict())
    assert any(isinstance(each, QuickDropout) for each in module.model.modules())
    quick = (QuickDropout, linear.QuickLinear)
    assert not any(isinstance(each, quick) for each in plain.model.modules())
    batch = make_batch(t5)
    assert (batch["labels"] == IGNORED_LABEL).any()
    loss, tokens = module.token_loss(batch)
    expected = plain_loss(plain.model, batch)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    assert int(tokens) == int((batch["labels"] != IGNORED_LABEL).sum())
    found, wanted = gradients(module, loss), gradients(plain, expected)
    assert found.keys() == wanted.keys() != set()
    errors = {name: (found[name] - wanted[name]).norm() / wanted[name].norm() for name in wanted}
    assert max(errors.values()) < 3e-6, errors


@pytest.mark.parametrize("method", MAKE)
def test_the_head_sees_real_labels_only(method: str, t5: str) -> None:
    module = settle(MAKE[method](t5))
    seen: list[torch.Size] = []
    module.model.get_output_embeddings().register_forward_hook(
        lambda head, inputs, output: seen.append(output.shape)
    )
    batch = make_batch(t5)
    _, tokens = module.token_loss(batch)
    assert seen == [(int(tokens), 259)]
    # And all of them again when somebody else asks.
    plain_loss(module.model, batch)
    assert seen[1] == (*batch["labels"].shape, 259)


# Dropout ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_its_share_and_keeps_the_mean(rate: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    rows, columns = 1001, 999  # a number of elements that four does not divide
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


def test_the_probability_is_exact_to_its_last_bit() -> None:
    torch.manual_seed(0)
    dropped = (drop(torch.ones(20_000_000), 2**-16) == 0).sum().item()
    expected = 20_000_000 / 2**16
    assert abs(dropped - expected) < 5 * expected**0.5


def test_neighbours_are_dropped_independently() -> None:
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
    layer = QuickDropout(0.5)
    values = torch.ones(64)
    torch.manual_seed(3)
    first = layer(values)
    state = torch.get_rng_state()
    second = layer(values)
    torch.manual_seed(3)
    assert torch.equal(layer(values), first)
    assert not torch.equal(second, first)
    torch.set_rng_state(state)
    assert torch.equal(layer(values), second)
    assert torch.equal(layer.eval()(values), values)


@pytest.mark.parametrize(("rate", "expected"), [(0.0, 1.0), (1.0, 0.0)])
def test_dropping_none_or_all(rate: float, expected: float) -> None:
    assert (drop(torch.ones(8), rate) == expected).all()


# Attention --------------------------------------------------------------------------------------


class Layer(nn.Module):
    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.is_causal = causal


@pytest.mark.parametrize("mask", ["none", "bool", "float"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("causal", "queries"), [(True, 5), (False, 5), (False, 1)])
def test_attention_is_that_of_sdpa(
    mask: str, bias: bool, causal: bool, queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "drop", lambda input, rate: input)  # the path, without its noise
    torch.manual_seed(0)
    keys = 5 if causal else 7
    query, key, value = (torch.randn(2, 3, n, 4, requires_grad=True) for n in (queries, keys, keys))
    position_bias = torch.randn(1, 3, queries, keys, requires_grad=True) if bias else None
    attended = torch.ones(2, 1, queries, keys, dtype=torch.bool)
    attended[1, ..., -2:] = False
    additive = torch.zeros(attended.shape).masked_fill(~attended, torch.finfo(torch.float32).min)
    masks = {"none": None, "bool": attended, "float": additive}
    learnt = [each for each in (query, key, value, position_bias) if each is not None]

    def run(function: Any, dropout: float) -> list[Tensor]:
        output, weights = function(
            Layer(causal), query, key, value, masks[mask], dropout=dropout, scaling=0.7,
            position_bias=position_bias,
        )  # fmt: skip
        assert weights is None
        return [output, *torch.autograd.grad(output.square().sum(), learnt)]

    for ours, theirs in zip(run(attend, 0.1), run(sdpa_attention_forward, 0.0), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("dtype", "queries", "dropout", "fused"),
    [
        (torch.float32, 5, 0.0, True),
        (torch.float32, 5, 0.1, False),
        (torch.float32, 1, 0.0, False),
        (torch.bfloat16, 5, 0.0, False),
    ],
)
def test_what_torch_has_a_quick_kernel_for_goes_to_it(
    dtype: torch.dtype, queries: int, dropout: float, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[float] = []

    def spy(*arguments: Any, **settings: Any) -> Any:
        calls.append(arguments[5])
        return sdpa_attention_forward(*arguments, **settings)

    monkeypatch.setattr(kernels, "sdpa_attention_forward", spy)
    query, key, value = (torch.randn(2, 3, n, 4, dtype=dtype) for n in (queries, 7, 7))
    output, _ = attend(Layer(False), query, key, value, None, dropout=dropout)
    assert bool(calls) == fused
    assert output.dtype == dtype
    if not dropout:
        exact, _ = sdpa_attention_forward(
            Layer(False), query.float(), key.float(), value.float(), None
        )
        torch.testing.assert_close(output.float(), exact, rtol=1e-6, atol=0.02 if not fused else 0)


def test_attention_drops_weights_in_training(t5: str) -> None:
    """Hidden states are not dropped here: what differs between two passes is attention."""
    module = settle(FullFT(backbone=t5))
    for each in module.modules():
        if isinstance(each, nn.Dropout):
            each.p = 0.0
    batch = make_batch(t5)
    losses = {module.token_loss(batch)[0].item() for _ in range(3)}
    assert len(losses) == 3
    module.eval()
    assert len({module.token_loss(batch)[0].item() for _ in range(3)}) == 1


# Modules and optimizer --------------------------------------------------------------------------


def test_quicken_leaves_the_state_and_the_config_as_they_were(t5: str, tmp_path: Path) -> None:
    plain = AutoModelForSeq2SeqLM.from_pretrained(t5)
    quick = quicken(AutoModelForSeq2SeqLM.from_pretrained(t5))
    assert list(quick.state_dict()) == list(plain.state_dict())
    assert not any(isinstance(each, NewGELUActivation) for each in quick.modules())
    dropouts = [each for each in quick.modules() if isinstance(each, nn.Dropout)]
    assert {type(each) for each in dropouts} == {QuickDropout}
    assert [each.training for each in dropouts] == [False] * len(dropouts)
    for model, name in ((plain, "plain"), (quick, "quick")):
        model.save_pretrained(tmp_path / name)  # type: ignore[operator]
    configs = [(tmp_path / name / "config.json").read_text() for name in ("plain", "quick")]
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
    quicken(model)
    torch.testing.assert_close(model(**arguments).loss, expected)
    losses = [model.train()(**arguments).loss for _ in range(300)]
    assert len({loss.item() for loss in losses}) > 1
    torch.testing.assert_close(torch.stack(losses).mean(), expected, rtol=0.02, atol=0)


@pytest.mark.parametrize(
    ("make", "fused"),
    [
        (lambda p: torch.optim.AdamW(p, lr=0.1), True),
        (lambda p: torch.optim.Adam(p, lr=0.1), True),
        (lambda p: torch.optim.AdamW(p, lr=0.1, fused=False), False),
        (lambda p: torch.optim.AdamW(p, lr=0.1, foreach=True), None),
        (lambda p: torch.optim.SGD(p, lr=0.1), None),
    ],
)
def test_adam_is_fused_unless_told_otherwise(make: Any, fused: bool | None) -> None:
    weights = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))]
    optimizer = fuse(make([{"params": weights[:1]}, {"params": weights[1:]}]))
    assert [group["fused"] for group in optimizer.param_groups] == [fused, fused]


def test_fused_adam_takes_the_same_steps() -> None:
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(20)) for _ in range(2)]
    with torch.no_grad():
        weights[1].copy_(weights[0])
    plain = torch.optim.AdamW([weights[0]], lr=0.1, weight_decay=0.1, fused=False)
    fused = fuse(torch.optim.AdamW([weights[1]], lr=0.1, weight_decay=0.1))
    for _ in range(5):
        gradient = torch.randn(20)
        for weight, optimizer in zip(weights, (plain, fused), strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-5, atol=1e-6)


def test_a_run_in_bf16_clips_the_gradients_of_a_fused_adam(t5: str, tmp_path: Path) -> None:
    """Lightning refuses that for an Adam that was built as a fused one."""
    module = LoRA(backbone=t5, r=2, optimizer=lambda p: torch.optim.AdamW(p, lr=0.01))
    trainer = make_trainer(tmp_path, precision="bf16-mixed", gradient_clip_val=1.0)
    trainer.fit(module, loader(make_batch(t5)))
    assert trainer.optimizers[0].param_groups[0]["fused"] is True

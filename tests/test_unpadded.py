"""An encoder pass without padding gives what a padded pass gives, at every real token."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_modules.adapters import unwrap
from lightning_modules.backbones import checkpoint_activations, load_backbone
from lightning_modules.unpadded import encode_rows
from tests.models import make_lora

LENGTHS = (9, 1, 14, 6)


@pytest.fixture
def model(t5: str) -> Any:
    return make_lora(t5)


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(len(LENGTHS), max(LENGTHS), 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def mask() -> Tensor:
    return (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()


def padded(encoder: Any, inputs: Tensor, mask: Tensor) -> Tensor:
    """The pass that transformers makes."""
    hidden = encoder(inputs_embeds=inputs, attention_mask=mask).last_hidden_state
    return hidden * mask[..., None]


def gradients(
    model: Any, encode: Callable[..., Tensor], inputs: Tensor, mask: Tensor
) -> dict[str, Tensor]:
    inputs = inputs.clone().requires_grad_()
    model.zero_grad()
    hidden = encode(unwrap(model).get_encoder(), inputs, mask)
    (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert inputs.grad is not None
    return found | {"hidden": hidden.detach(), "inputs": inputs.grad}


@pytest.mark.parametrize("frozen", [True, False])
def test_states_and_gradients_are_those_of_the_padded_pass(
    model: Any, inputs: Tensor, mask: Tensor, frozen: bool
) -> None:
    if not frozen:  # full fine-tuning, the position bias included
        unwrap(model).get_encoder().requires_grad_(True)
    ours = gradients(model, encode_rows, inputs, mask)
    theirs = gradients(model, padded, inputs, mask)
    assert ours.keys() == theirs.keys()
    assert any("relative_attention_bias" in name for name in ours) != frozen
    for name, expected in theirs.items():
        scale = float(expected.abs().max())
        torch.testing.assert_close(ours[name], expected, rtol=0, atol=1e-5 * scale, msg=name)


def test_no_time_goes_into_padding(model: Any, inputs: Tensor, mask: Tensor) -> None:
    seen: list[tuple[int, ...]] = []
    encoder = unwrap(model).get_encoder()
    encoder.block[1].register_forward_hook(lambda block, each, out: seen.append(each[0].shape))
    hidden = encode_rows(encoder, inputs, mask)
    assert seen == [(1, sum(LENGTHS), 32)]
    assert hidden.shape == inputs.shape
    assert not hidden[~mask.bool()].any()


def test_a_row_sees_itself_alone(model: Any, inputs: Tensor, mask: Tensor) -> None:
    encoder = unwrap(model).get_encoder()
    before = encode_rows(encoder, inputs, mask)
    other = inputs.clone()
    other[2] += 1
    after = encode_rows(encoder, other, mask)
    assert (after[2] - before[2]).abs().max() > 0.01
    rows = [0, 1, 3]
    torch.testing.assert_close(after[rows], before[rows], rtol=0, atol=1e-6)


def test_bf16_differs_from_the_padded_pass_by_rounding(
    model: Any, inputs: Tensor, mask: Tensor
) -> None:
    encoder = unwrap(model).get_encoder()
    with torch.no_grad():
        exact = padded(encoder, inputs, mask)
        with torch.autocast("cpu", torch.bfloat16):
            ours, theirs = encode_rows(encoder, inputs, mask), padded(encoder, inputs, mask)
    assert ours.dtype == theirs.dtype
    errors = [(each - exact).square().mean().sqrt() for each in (ours, theirs)]
    assert 0 < errors[0] < 1.5 * errors[1]


def test_checkpointing_the_activations_changes_nothing(
    model: Any, inputs: Tensor, mask: Tensor
) -> None:
    expected = gradients(model, encode_rows, inputs, mask)
    checkpoint_activations(model)
    found = gradients(model, encode_rows, inputs, mask)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_other_encoders_make_a_padded_pass(t5: str, inputs: Tensor, mask: Tensor) -> None:
    encoder = load_backbone(t5).get_encoder().eval()  # nothing quick about it
    seen: list[tuple[int, ...]] = []
    encoder.block[0].register_forward_hook(lambda block, each, out: seen.append(each[0].shape))
    encode_rows(encoder, inputs, mask)
    assert seen == [inputs.shape]

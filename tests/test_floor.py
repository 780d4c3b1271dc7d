"""The benchmark's floor counts the matrix products that were done, each once."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.floor import Recorder, replay
from lightning_modules import linear
from lightning_modules.linear import QuickLinear, prepacked

ROWS, IN, OUT = 3, 8, 5
PRODUCT = 2 * ROWS * IN * OUT
"""Operations of one product of a layer: a multiplication and an addition each."""


@pytest.mark.parametrize("kind", [nn.Linear, QuickLinear])
@pytest.mark.parametrize("frozen", [True, False])
def test_products_of_a_layer_forward_and_backward(
    kind: type[nn.Linear], frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "LEAST_WORK", 0)
    layer = kind(IN, OUT).requires_grad_(not frozen)
    values = torch.randn(ROWS, IN, requires_grad=True)
    with Recorder(layer.parameters()) as recorder:
        layer(values).sum().backward()
    # Forward, the gradient of the input, and that of the weight.
    assert [each.flops for each in recorder.products] == [PRODUCT] * (2 if frozen else 3)
    own = {str(each.own.function) for each in recorder.products}
    assert own == {"mkldnn._linear_pointwise" if kind is QuickLinear else "aten.mm"}
    forward, back = (each.plain.arguments[1] for each in recorder.products[:2])
    assert {forward.data_ptr(), back.data_ptr()} == {layer.weight.data_ptr()}
    assert (forward.shape, back.shape) == ((IN, OUT), (OUT, IN))
    torch.testing.assert_close(forward, layer.weight.detach().t())
    assert replay(recorder.products) > 0
    assert replay(recorder.products, own=True) > 0


@torch.no_grad()
@pytest.mark.parametrize("mixed", [True, False])
def test_every_weight_keeps_memory_of_its_own_in_the_replay(
    mixed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two layers of one shape: a single operand for both would stay in the processor's cache."""
    monkeypatch.setattr(linear, "LEAST_WEIGHTS", 0)
    model = nn.Sequential(QuickLinear(IN, IN), QuickLinear(IN, IN))
    values = torch.randn(ROWS, IN)
    with (
        Recorder(model.parameters()) as recorder,
        torch.autocast("cpu", torch.bfloat16, enabled=mixed),
    ):
        for _ in range(2):
            model(values)
        with prepacked(model, rows=ROWS):
            model(values)
    assert len(recorder.products) == 6
    weights = [each.plain.arguments[1] for each in recorder.products]
    assert {each.dtype for each in weights} == {torch.bfloat16 if mixed else torch.float32}
    places = [each.data_ptr() for each in weights]
    assert places[:2] == places[2:4] == places[4:]
    assert places[0] != places[1]
    for weight, layer in zip(weights, model, strict=False):
        torch.testing.assert_close(weight.t().float(), layer.weight, rtol=0.01, atol=0.01)
    packed = [each.own.arguments[1] for each in recorder.products[4:]]
    assert [each.layout for each in packed] == [torch._mkldnn] * 2
    assert replay(recorder.products, own=True) > 0


def test_fused_attention_counts_as_its_products() -> None:
    query, key, value = (torch.randn(2, 3, n, 4, requires_grad=True) for n in (5, 7, 7))
    with Recorder([]) as recorder:
        F.scaled_dot_product_attention(query, key, value).sum().backward()
    one = 2 * (2 * 3) * 5 * 7 * 4
    assert [each.flops for each in recorder.products] == [one] * 6

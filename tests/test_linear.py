"""Linear layers by oneDNN compute what torch's own do."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from lightning_modules import linear
from lightning_modules.kernels import quicken
from lightning_modules.linear import QuickLinear, prepacked
from tests.models import move_lora

pytestmark = pytest.mark.skipif(not linear.AVAILABLE, reason="this torch lacks MKL or oneDNN")


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Send every product, however small, to oneDNN, and list the weights of those that went."""
    seen: list[Tensor] = []
    real = linear.product

    def spy(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        seen.append(weight)
        return real(input, weight, bias)

    monkeypatch.setattr(linear, "LEAST_WORK", 0)
    monkeypatch.setattr(linear, "LEAST_WEIGHTS", 0)
    monkeypatch.setattr(linear, "product", spy)
    return seen


def make_pair(bias: bool = True) -> tuple[nn.Linear, QuickLinear]:
    """A plain layer and a quick one with the same weights."""
    torch.manual_seed(0)
    plain, quick = nn.Linear(7, 5, bias=bias), QuickLinear(7, 5, bias=bias)
    quick.load_state_dict(plain.state_dict())
    return plain, quick


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(4, 7), (2, 3, 7)])
@pytest.mark.parametrize("trained", ["all", "weight", "input"])
def test_output_and_gradients_are_those_of_torch(
    products: list[Tensor], bias: bool, shape: tuple[int, ...], trained: str
) -> None:
    found = []
    for layer in make_pair(bias):
        layer.requires_grad_(trained != "input")
        values = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        values.requires_grad_(trained != "weight")
        output = layer(values)
        (output * torch.arange(5.0)).square().sum().backward()
        found.append([output, *(each.grad for each in (values, *layer.parameters()))])
    wants_input, wants_weight = trained != "weight", trained != "input"
    assert len(products) == 1 + wants_input + wants_weight
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert [each is not None for each in found[1]] == [True, wants_input] + [wants_weight] * (
        1 + bias
    )


def test_strides_do_not_matter(products: list[Tensor]) -> None:
    plain, quick = make_pair()
    values = torch.randn(7, 3, 4).transpose(0, 2)
    torch.testing.assert_close(quick(values), plain(values))
    assert products


def test_a_frozen_layer_does_not_keep_its_input(products: list[Tensor]) -> None:
    """Activations are most of what a step holds in memory."""
    _, quick = make_pair()
    quick.requires_grad_(False)
    values = torch.randn(4, 7, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, id):
        quick(values)
    assert [tuple(each.shape) for each in kept] == [(5, 7)]


@pytest.mark.parametrize("case", ["small", "vector", "fp64", "bf16", "autocast"])
def test_other_products_go_the_usual_way(
    products: list[Tensor], monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    plain, quick = make_pair()
    values = torch.randn(4, 7)
    if case == "small":
        monkeypatch.setattr(linear, "LEAST_WORK", 4 * 7 * 5 + 1)
    elif case == "vector":
        values = values[0]
    elif case != "autocast":
        dtype = {"fp64": torch.float64, "bf16": torch.bfloat16}[case]
        plain, quick, values = plain.to(dtype), quick.to(dtype), values.to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        ours, theirs = quick(values), plain(values)
    assert torch.equal(ours, theirs)
    assert ours.dtype == theirs.dtype
    assert not products


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
def test_prepacked_weights_give_the_same_in_fp32(products: list[Tensor], bias: bool) -> None:
    plain, quick = make_pair(bias)
    model = nn.Sequential(quick, nn.ReLU(), nn.Linear(5, 2))
    values = torch.randn(3, 7)
    with prepacked(model, rows=3):
        torch.testing.assert_close(quick(values), plain(values))
        torch.testing.assert_close(quick(values[:, None]), plain(values[:, None]))
        assert [each.layout for each in products] == [torch._mkldnn] * 2
        model(values)  # what is no quick layer stays as it is
    assert quick.packed is None
    quick.weight.add_(1.0)  # as an update would: nothing of the old weights is left
    plain.weight.add_(1.0)
    with prepacked(model, rows=3):
        torch.testing.assert_close(quick(values), plain(values))


@torch.no_grad()
def test_prepacked_weights_are_bf16_under_autocast(products: list[Tensor]) -> None:
    plain, quick = make_pair()
    values = torch.randn(3, 7)
    with torch.autocast("cpu", torch.bfloat16), prepacked(quick, rows=3):
        ours, theirs = quick(values), plain(values)
    assert products[0].dtype == ours.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02)


def test_weights_are_not_laid_out_where_a_gradient_may_be_taken() -> None:
    _, quick = make_pair()
    with prepacked(quick, rows=3):
        assert quick.packed is None


@torch.no_grad()
def test_small_weights_are_not_laid_out(monkeypatch: pytest.MonkeyPatch) -> None:
    _, quick = make_pair()
    for least, expected in ((35, True), (36, False)):
        monkeypatch.setattr(linear, "LEAST_WEIGHTS", least)
        with prepacked(quick, rows=3):
            assert (quick.packed is not None) == expected


@torch.no_grad()
def test_a_failure_inside_leaves_nothing_laid_out(products: list[Tensor]) -> None:
    _, quick = make_pair()
    with pytest.raises(KeyError), prepacked(quick, rows=3):
        assert quick.packed is not None
        raise KeyError
    assert quick.packed is None


def make_lora(**settings: Any) -> tuple[Any, Any]:
    """A LoRA layer that changes something, and the model it is the only layer of."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 5, bias=False))
    peft = get_peft_model(model, LoraConfig(r=2, lora_alpha=6, target_modules=["0"], **settings))
    move_lora(peft, std=1.0)
    return quicken(peft.eval()), peft.base_model.model[0]


@torch.no_grad()
def test_a_lora_is_in_the_weights_that_are_laid_out(products: list[Tensor]) -> None:
    model, layer = make_lora()
    model.add_adapter("other", LoraConfig(r=3, lora_alpha=3, target_modules=["0"]))
    nn.init.normal_(layer.lora_B["other"].weight)
    quicken(model.eval())
    values = torch.randn(3, 7)
    for name in ("default", "other"):
        model.set_adapter(name)
        expected = model(values)
        update = layer.scaling[name] * layer.lora_B[name].weight @ layer.lora_A[name].weight
        torch.testing.assert_close(expected, values @ (layer.base_layer.weight + update).t())
        with prepacked(model, rows=3):
            products.clear()
            torch.testing.assert_close(model(values), expected)
            assert len(products) == 1
        products.clear()
        assert torch.equal(model(values), expected)  # as it was
        assert len(products) == 3
    with model.disable_adapter():
        expected = values @ layer.base_layer.weight.t()
        with prepacked(model, rows=3):
            torch.testing.assert_close(model(values), expected)


@torch.no_grad()
@pytest.mark.parametrize("case", ["dora", "bias", "bf16", "known"])
def test_other_updates_stay_beside_the_weights(products: list[Tensor], case: str) -> None:
    settings = {"dora": {"use_dora": True}, "bias": {"lora_bias": True}}.get(case, {})
    model, layer = make_lora(**settings)
    values = torch.randn(3, 7)
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "bf16"):
        expected = model(values)
        if case == "known":
            layer.base_layer.known = layer.base_layer(values)
        with prepacked(model, rows=3):
            products.clear()
            found = model(values)
    assert len(products) == {"known": 2, "dora": 5}.get(case, 3)
    tolerance = 0.03 if case == "bf16" else 1e-5
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    assert not layer.merged


def test_state_and_hooks_stay_when_a_layer_becomes_quick(products: list[Tensor]) -> None:
    layer = nn.Linear(7, 5)
    seen: list[Any] = []
    layer.register_forward_hook(lambda *each: seen.append(each))
    model = nn.Sequential(layer)
    names = list(model.state_dict())
    quicken(model)
    assert type(model[0]) is QuickLinear
    assert model[0] is layer
    assert list(model.state_dict()) == names
    model(torch.randn(2, 7))
    assert len(seen) == len(products) == 1

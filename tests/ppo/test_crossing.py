"""What the decoder's frozen layers make of a prompt is computed once, and is what they would."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_modules import linear
from lightning_modules.adapters import reference_policy, unwrap
from lightning_modules.backbones import load_backbone
from lightning_modules.linear import QuickLinear
from lightning_modules.ppo.crossing import find_projections, project, projected
from lightning_modules.ppo.rollout import roll_out
from lightning_modules.ppo.sampling import Sampling
from lightning_modules.ppo.token_scores import Encoded, Prompts, encode, score_tokens
from tests.batches import make_batch
from tests.models import make_lora

SETTINGS = Sampling(max_new_tokens=6, temperature=0.7, eos_id=1, pad_id=0)
DECODER = r".*decoder.*\.(q|v)"


@pytest.fixture
def prompts(t5: str) -> Prompts:
    batch = make_batch(t5)
    return Prompts(batch["input_ids"], batch["attention_mask"])


def rows_read(model: Any) -> list[int]:
    """List, as they come, how many tokens the frozen projections read."""
    seen: list[int] = []

    def note(layer: QuickLinear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if layer.known is None:
            seen.append(inputs[0].shape[:-1].numel())

    for layer in find_projections(unwrap(model).get_decoder()):
        layer.register_forward_hook(note)
    return seen


def test_keys_and_values_of_every_layer_are_found_below_adapters(t5: str) -> None:
    model = make_lora(t5, target_modules=DECODER)
    blocks = unwrap(model).get_decoder().block
    crossing = [block.layer[1].EncDecAttention for block in blocks]
    expected = [layer for each in crossing for layer in (each.k, each.v.base_layer)]
    assert find_projections(unwrap(model).get_decoder()) == expected
    crossing[0].k.requires_grad_(True)  # what is trained may not be remembered
    assert find_projections(unwrap(model).get_decoder()) == expected[1:]


@torch.no_grad()
def test_products_are_the_layers_own_and_0_at_padding(t5: str, prompts: Prompts) -> None:
    model = make_lora(t5, target_modules=DECODER)
    encoded = encode(model, prompts, projects=True)
    assert len(encoded.projected) == 2 * len(unwrap(model).get_decoder().block)
    real = prompts.attention_mask.bool()
    layers = find_projections(unwrap(model).get_decoder())
    for layer, product in zip(layers, encoded.projected, strict=True):
        torch.testing.assert_close(product[real], layer(encoded.hidden)[real])
        assert not product[~real].any()


@pytest.mark.parametrize("reference", [True, False])
def test_scores_and_gradients_do_not_change(t5: str, prompts: Prompts, reference: bool) -> None:
    model = make_lora(t5, target_modules=DECODER)
    responses = torch.randint(2, 200, (8, 5), generator=torch.Generator().manual_seed(0))
    owner = torch.tensor([3, 0, 0, 5, 2, 1, 4, 4])
    found = []
    for projects in (False, True):
        with torch.no_grad():
            rows = encode(model, prompts, projects).rows(owner)
        model.zero_grad()
        if reference:
            with torch.no_grad(), reference_policy(model) as start:
                scores = score_tokens(start, rows, responses, responses > 0, 0.7).logprobs
            found.append([scores])
            continue
        scores = score_tokens(model, rows, responses, responses > 0, 0.7).logprobs
        (scores * torch.arange(5.0)).sum().backward()
        gradients = [p.grad for p in model.parameters() if p.requires_grad]
        assert all(each is not None for each in gradients)
        found.append([scores.detach(), *gradients])
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("targets", "samples", "passes"), [
    (DECODER, 1, "one"), (DECODER, 3, "one"), (["q", "v"], 3, "policy's and reference's"),
])  # fmt: skip
def test_a_rollout_reads_each_real_token_once(
    t5: str, prompts: Prompts, monkeypatch: pytest.MonkeyPatch,
    targets: Any, samples: int, passes: str,
) -> None:  # fmt: skip
    """And what it draws is what it scores, with the update in the weights that are laid out."""
    monkeypatch.setattr(linear, "LEAST_WEIGHTS", 0)
    model = make_lora(t5, target_modules=targets)
    seen = rows_read(model)
    torch.manual_seed(1)
    shared = targets == DECODER
    made = roll_out(
        model, prompts, SETTINGS, samples=samples, shared_encoder=shared, reuse_sampler=True
    )
    layers = len(find_projections(unwrap(model).get_decoder()))
    real = int(prompts.attention_mask.sum())
    assert seen[:layers] == [real] * layers
    assert (len(seen) == layers) == (passes == "one")
    with torch.no_grad():
        rows = encode(model, prompts).rows(made.owner)
        scores = score_tokens(model, rows, made.responses, made.mask, 0.7)
        torch.testing.assert_close(made.logprobs, scores.logprobs, rtol=0, atol=1e-5)
        with reference_policy(model) as start:
            rows = encode(start, prompts).rows(made.owner)
            scores = score_tokens(start, rows, made.responses, made.mask, 0.7)
        torch.testing.assert_close(made.ref_logprobs, scores.logprobs, rtol=0, atol=1e-5)
    assert (made.encoded is not None) == shared
    assert not shared or len(made.encoded.projected) == layers  # type: ignore[union-attr]


@torch.no_grad()
def test_nothing_is_remembered_after_a_failure(t5: str, prompts: Prompts) -> None:
    model = make_lora(t5, target_modules=DECODER)
    decoder = unwrap(model).get_decoder()
    encoded = encode(model, prompts, projects=True)
    with pytest.raises(KeyError), projected(decoder, encoded.projected):
        assert all(layer.known is not None for layer in find_projections(decoder))
        raise KeyError
    assert all(layer.known is None for layer in find_projections(decoder))


@torch.no_grad()
def test_other_decoders_project_for_themselves(t5: str, prompts: Prompts) -> None:
    decoder = load_backbone(t5).get_decoder()  # nothing quick about it
    hidden = torch.randn(*prompts.attention_mask.shape, 32)
    assert project(decoder, hidden, prompts.attention_mask) == ()
    assert Encoded(hidden, prompts.attention_mask).rows(torch.tensor([0])).projected == ()

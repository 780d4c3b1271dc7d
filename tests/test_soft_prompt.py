"""Soft prompts: where they start, that all of them is trained, and what padding does not do."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from common.hub import load_tokenizer
from lightning_modules import SoftPrompt
from lightning_modules.backbones import load_backbone
from lightning_modules.policies.soft_prompt import draw_common_tokens
from tests.batches import loader, make_batch, make_trainer
from tests.test_modules import DECODING, adamw

STARTS: dict[str, dict[str, Any]] = {
    "random": {"init": "random"},
    "vocabulary": {"init": "vocabulary"},
    "text": {"init": "text", "init_text": "Summarize"},
}


def rows(module: SoftPrompt) -> Tensor:
    """The trained vectors, [virtual tokens, width]."""
    return module.model.prompt_encoder["default"].embedding.weight


def make(t5: str, start: str, seed: int = 0, **settings: Any) -> SoftPrompt:
    module = SoftPrompt(backbone=t5, decoding=DECODING, **(STARTS[start] | settings))
    torch.manual_seed(seed)
    module.configure_model()
    return module


@pytest.mark.parametrize("number", [1, 20, 100, 300])
@pytest.mark.parametrize("start", STARTS)
def test_every_row_that_is_allocated_is_trained(
    start: str, number: int, t5: str, tmp_path: Path
) -> None:
    module = make(t5, start, virtual_tokens=number, optimizer=adamw(0.1))
    trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
    assert [p.shape for p in trained.values()] == [(number, 32)]
    batch = make_batch(t5)
    module.sum_losses(batch)[0].backward()
    gradient = rows(module).grad
    assert gradient is not None
    assert (gradient.norm(dim=1) > 0).all()
    before = rows(module).detach().clone()
    make_trainer(tmp_path, max_epochs=3).fit(module, loader(batch))
    # Each step moves every number by up to the learning rate.
    assert ((rows(module) - before).abs().amax(dim=1) > 0.05).all()


def test_a_random_start_is_the_papers(t5: str) -> None:
    start = rows(make(t5, "random", virtual_tokens=300)).detach()
    assert start.min() >= -0.5
    assert start.max() <= 0.5
    # Uniform in [-0.5, 0.5]: mean 0, deviation 1 / sqrt(12).
    assert abs(float(start.mean())) < 0.02
    assert float(start.std()) == pytest.approx(12**-0.5, abs=0.01)


def test_a_start_from_the_vocabulary_has_rows_of_common_tokens(t5: str) -> None:
    start = rows(make(t5, "vocabulary", virtual_tokens=100)).detach()
    embeddings = load_backbone(t5).get_input_embeddings().weight
    distance = (start[:, None] - embeddings[None]).abs().amax(dim=-1)
    found = distance.argmin(dim=1)
    assert (distance.amin(dim=1) == 0).all()
    assert len(set(found.tolist())) == 100
    assert found.min() > 2  # no pad, no EOS, no unknown


def test_common_tokens_are_the_first_that_are_not_special() -> None:
    mini = load_tokenizer("mini")
    special = set(mini.all_special_ids)
    assert len(special) > 30
    drawn = draw_common_tokens(mini, len(mini)).tolist()
    assert set(drawn) == set(range(len(mini))) - special

    class Flan:
        all_special_ids = (0, 1, 2, *range(32000, 32100))

        def __len__(self) -> int:
            return 32100

    drawn = draw_common_tokens(Flan(), 20000).tolist()  # type: ignore[arg-type]
    assert set(drawn) == set(range(3, 5003))
    assert len(drawn) == 20000


def test_a_start_from_a_text_repeats_or_cuts_it(t5: str) -> None:
    embeddings = load_backbone(t5).get_input_embeddings()
    tokens = load_tokenizer(t5)("Summarize")["input_ids"]
    for number, expected in ((4, tokens[:4]), (25, (tokens * 3)[:25])):
        start = rows(make(t5, "text", virtual_tokens=number))
        torch.testing.assert_close(start, embeddings(torch.tensor(expected)))


def test_it_is_the_backbone_behind_the_vectors(t5: str) -> None:
    """By hand: the vectors before the embedded prompt, and ones before its mask."""
    module = make(t5, "random", virtual_tokens=7).eval()
    batch = make_batch(t5)
    backbone = load_backbone(t5).eval()
    embedded = backbone.get_input_embeddings()(batch["input_ids"])
    count = len(embedded)
    inputs = {
        "inputs_embeds": torch.cat([rows(module).expand(count, -1, -1), embedded], dim=1),
        "attention_mask": torch.cat(
            [torch.ones(count, 7, dtype=torch.long), batch["attention_mask"]], dim=1
        ),
    }
    by_hand = backbone(**inputs, labels=batch["labels"]).logits
    ours = module.model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        labels=batch["labels"],
    ).logits
    torch.testing.assert_close(ours, by_hand)
    tokens = backbone.generate(**inputs, **DECODING.arguments())
    assert module.generate(batch) == module.backbone.decode(tokens)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"virtual_tokens": 0}, "at least 1"),
        ({"init": "text"}, "set init_text"),
        ({"init": "text", "init_text": "  "}, "set init_text"),
        ({"init": "random", "init_text": "Summarize"}, "set init: text"),
        ({"init_text": "Summarize"}, "has no effect with init: vocabulary"),
        ({"init": "zeros"}, "one of random, vocabulary, text, got 'zeros'"),
        ({"init": "text", "virtual_tokens": -1}, "at least 1, got -1; .*init_text"),
    ],
)
def test_settings_that_disagree_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SoftPrompt(backbone="x", **settings)

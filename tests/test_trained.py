"""Names and number of the parameters that each method trains."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from lightning_modules import (
    Classifier,
    FullFT,
    InContext,
    LoRA,
    PPOPolicy,
    PreferenceModule,
    RewardModel,
    SoftPrompt,
)
from lightning_modules.policies.kinds import LoRAPolicy
from tests.batches import settle

# The tiny T5 is 32 wide, with 2 encoder layers of one attention and 2 decoder layers of two, so
# q and v are 12 matrices [32, 32]; A and B of rank 4 are 4 x 32 numbers each.
PAIR = 2 * 4 * 32
# Embedding and head, 24 matrices of attention, 12 of the feed-forward, 2 biases, 12 norms.
T5 = 2 * 259 * 32 + 24 * 32 * 32 + 12 * 32 * 64 + 2 * 32 * 4 + 12 * 32
CLASSIFIER = 22_178
# The head of two labels is replaced by one of a single output, 33 numbers less.
REWARD = CLASSIFIER - 33
ATTENTION = r"model\.base_model\.model\.(en|de)coder\.block\.[01]\.layer\.[01]\.\w+Attention\."
LORA = ATTENTION + r"[qv]\.lora_[AB]\.default\.weight"
VALUE_HEAD = r"value_head\.linear\.(weight|bias)"


TABLE: dict[str, tuple[Callable[..., Any], str, int, int]] = {
    # What each method builds, the pattern of all names that it trains, their number, their size.
    "in_context": (lambda t5, _: InContext(t5), "", 0, 0),
    "full_ft": (lambda t5, _: FullFT(t5), r"model\..*", 52, T5),
    "lora": (lambda t5, _: LoRA(t5, r=4), LORA, 24, 12 * PAIR),
    "dora": (
        lambda t5, _: LoRA(t5, r=4, use_dora=True),
        ATTENTION + r"[qv]\.lora_([AB]|magnitude_vector)\.default\.weight", 36, 12 * (PAIR + 32),
    ),
    "lora on the decoder": (
        lambda t5, _: LoRA(t5, r=4, target_modules=r".*decoder.*\.(q|v)$"),
        LORA.replace("(en|de)", "de"), 16, 8 * PAIR,
    ),
    "soft_prompt": (
        lambda t5, _: SoftPrompt(t5, virtual_tokens=5),
        r"model\.prompt_encoder\.default\.embedding\.weight", 1, 5 * 32,
    ),
    "reward": (lambda _, roberta: RewardModel(roberta), r"model\..*", 25, REWARD),
    "classifier": (lambda _, roberta: Classifier(roberta), r"model\..*", 25, CLASSIFIER),
    "dpo": (lambda t5, _: PreferenceModule(t5, policy=LoRAPolicy(r=4)), LORA, 24, 12 * PAIR),
    "ppo": (
        lambda t5, roberta: PPOPolicy(t5, roberta, policy=LoRAPolicy(r=4)),
        f"{LORA}|{VALUE_HEAD}", 26, 12 * PAIR + 33,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_what_a_method_trains(name: str, t5: str, roberta: str) -> None:
    make, names, tensors, size = TABLE[name]
    module = settle(make(t5, roberta))
    trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
    assert [n for n in trained if not re.fullmatch(names, n)] == []
    assert len(trained) == tensors
    total = {"reward": REWARD, "classifier": CLASSIFIER}.get(name, T5)
    added = 0 if name in ("reward", "classifier", "full_ft") else size
    assert module.count_parameters() == (size, total + added)
    # The optimizer gets these and no others.
    given = [p for group in module.parameter_groups() for p in group["params"]]
    assert {id(p) for p in given} == {id(p) for p in trained.values()}
    assert len(given) == len(trained)

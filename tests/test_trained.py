"""What each method trains: names and counts, to the last parameter."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from lightning_modules import (
    DPO,
    Classifier,
    FullFT,
    InContext,
    LoRA,
    PPOPolicy,
    RewardModel,
    SoftPrompt,
)
from lightning_modules.policies.adapters import count_parameters
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


class Row(NamedTuple):
    """A method, the pattern of all names that it trains, how many they are, and their size."""

    make: Callable[..., Any]
    names: str
    tensors: int
    size: int


TABLE = {
    "in_context": Row(lambda t5, _: InContext(backbone=t5), "", 0, 0),
    "full_ft": Row(lambda t5, _: FullFT(backbone=t5), r"model\..*", 52, T5),
    "lora": Row(lambda t5, _: LoRA(backbone=t5, r=4), LORA, 24, 12 * PAIR),
    "rslora": Row(lambda t5, _: LoRA(backbone=t5, r=4, use_rslora=True), LORA, 24, 12 * PAIR),
    "dora": Row(
        lambda t5, _: LoRA(backbone=t5, r=4, use_dora=True),
        ATTENTION + r"[qv]\.lora_([AB]|magnitude_vector)\.default\.weight",
        36,
        12 * (PAIR + 32),
    ),
    "lora on the decoder": Row(
        lambda t5, _: LoRA(backbone=t5, r=4, target_modules=r".*decoder.*\.(q|v)$"),
        LORA.replace("(en|de)", "de"),
        16,
        8 * PAIR,
    ),
    "soft_prompt": Row(
        lambda t5, _: SoftPrompt(backbone=t5, virtual_tokens=5),
        r"model\.prompt_encoder\.default\.embedding\.weight",
        1,
        5 * 32,
    ),
    "reward": Row(
        lambda _, roberta: RewardModel(backbone=roberta),
        r"model\..*",
        25,
        REWARD,
    ),
    "classifier": Row(
        lambda _, roberta: Classifier(backbone=roberta), r"model\..*", 25, CLASSIFIER
    ),
    "dpo": Row(lambda t5, _: DPO(backbone=t5, policy=LoRAPolicy(r=4)), LORA, 24, 12 * PAIR),
    "ppo": Row(
        lambda t5, roberta: PPOPolicy(backbone=t5, reward_model=roberta, policy=LoRAPolicy(r=4)),
        f"{LORA}|{VALUE_HEAD}",
        26,
        12 * PAIR + 33,
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_what_a_method_trains(name: str, t5: str, roberta: str) -> None:
    row = TABLE[name]
    module = settle(row.make(t5, roberta))
    trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
    assert [n for n in trained if not re.fullmatch(row.names, n)] == []
    assert len(trained) == row.tensors
    assert sum(p.numel() for p in trained.values()) == row.size
    total = {"reward": REWARD, "classifier": CLASSIFIER}.get(name, T5)
    added = 0 if name in ("reward", "classifier", "full_ft") else row.size
    assert module.count_parameters() == (row.size, total + added)
    # The optimizer gets these and no others.
    given = [p for group in module.parameter_groups() for p in group["params"]]
    assert {id(p) for p in given} == {id(p) for p in trained.values()}
    assert len(given) == len(trained)


def test_the_sizes_of_the_table(t5: str, roberta: str) -> None:
    assert count_parameters(AutoModelForSeq2SeqLM.from_pretrained(t5))[1] == T5
    classifier = AutoModelForSequenceClassification.from_pretrained(roberta)
    assert count_parameters(classifier)[1] == CLASSIFIER


def test_ppo_from_an_adapter_trains_the_policys_copy_of_it_only(
    t5: str, roberta: str, tmp_path: Path
) -> None:
    settle(LoRA(backbone=t5, r=4)).export(tmp_path)
    module = settle(PPOPolicy(backbone=t5, reward_model=roberta, adapter=str(tmp_path)))
    trained = [n for n, p in module.named_parameters() if p.requires_grad]
    assert all(re.fullmatch(TABLE["ppo"].names, n) for n in trained)
    assert len(trained) == TABLE["ppo"].tensors
    frozen = [n for n, p in module.named_parameters() if not p.requires_grad]
    assert sum(".lora_A.reference." in n for n in frozen) == 12

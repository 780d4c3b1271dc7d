"""Rewards: the frozen scorer that PPO asks, and the model that learns from rankings."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from datamodules.preferences import (
    PreferenceDataModule,
    Ranking,
    lay_out_pairs,
    read_rankings,
)
from datamodules.sources import DataError
from lightning_modules.reward_model import RewardModel, RewardScorer, pairwise_loss
from tests.batches import make_trainer, settle

TEXTS = ["You are late.", "ok", "A much longer text than all of the others, with a comma.", "ok"]


def test_the_reward_is_the_raw_logit_of_the_label(roberta: str) -> None:
    scorer = RewardScorer(roberta, "nothate", batch_size=2)
    tokenizer = AutoTokenizer.from_pretrained(roberta)
    plain = AutoModelForSequenceClassification.from_pretrained(roberta).eval()
    # One text at a time, without padding, in the order given.
    expected = torch.cat([plain(**tokenizer([t], return_tensors="pt")).logits for t in TEXTS])
    torch.testing.assert_close(scorer.logits(TEXTS), expected[:, 0])
    rated = scorer.rate(TEXTS, "hate")
    assert rated["toxicity"] == pytest.approx(expected.softmax(-1)[:, 1].tolist(), rel=1e-5)
    assert rated["reward"] == pytest.approx(expected[:, 0].tolist(), rel=1e-5)
    other = RewardScorer(roberta, "hate")
    torch.testing.assert_close(other.logits(TEXTS), expected[:, 1])
    assert scorer.logits(TEXTS).std() > 0.01


def test_the_scorer_is_frozen_and_without_dropout(roberta: str) -> None:
    scorer = RewardScorer(roberta).train()
    assert not any(p.requires_grad for p in scorer.parameters())
    torch.testing.assert_close(scorer.logits(TEXTS), scorer.logits(TEXTS))


def test_an_unknown_label_is_refused_with_the_known_ones(roberta: str) -> None:
    with pytest.raises(ValueError, match=r"no label 'kind'.*\['hate', 'nothate'\]"):
        RewardScorer(roberta, "kind")


def test_a_text_longer_than_the_classifier_is_cut(roberta: str) -> None:
    scores = RewardScorer(roberta).logits(["a" * 500, "a" * 1000])
    torch.testing.assert_close(scores[0], scores[1])


def test_pairwise_loss_by_hand() -> None:
    rewards = torch.tensor([2.0, 0.0, -1.0])
    pairs = torch.tensor([[0, 1], [2, 1]])
    weights = torch.tensor([0.5, 0.25])
    expected = 0.5 * math.log(1 + math.exp(-2)) + 0.25 * math.log(1 + math.exp(1))
    assert pairwise_loss(rewards, pairs, weights).item() == pytest.approx(expected)


def test_pairs_have_the_preferred_first_and_rankings_weigh_alike() -> None:
    # First ranking: 3 < 1 < 2 with three pairs; second: a tie of the first two leaves two.
    pairs, weights = lay_out_pairs([[2, 3, 1], [1, 1, 2]])
    assert pairs.tolist() == [[0, 1], [2, 0], [2, 1], [3, 5], [4, 5]]
    assert weights.tolist() == pytest.approx([1 / 3] * 3 + [1 / 2] * 2)


def make_rankings() -> list[Ranking]:
    clean = ["Ann asks for tea.", "Bob has a cold.", "They meet at six.", "Room two is free."]
    return [
        Ranking(i, f"r{i}", "#Person1#: ...", [f"{text} How stupid.", text], [2, 1])
        for i, text in enumerate(clean)
    ]


def make_data(roberta: str, tmp_path: Path) -> PreferenceDataModule:
    for split in ("train", "validation", "test"):
        lines = [
            {"id": r.id, "dialogue": r.dialogue, "completions": r.completions, "ranks": r.ranks}
            for r in make_rankings()
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return PreferenceDataModule(str(tmp_path), roberta, batch_size=4)


def test_a_reward_model_learns_a_ranking_and_its_export_is_plain(
    roberta: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    data = make_data(roberta, tmp_path)
    module = RewardModel(
        backbone=roberta,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
        dropout=0.0,
    )
    settle(module)
    assert module.model.config.num_labels == 1
    make_trainer(tmp_path, max_epochs=25, limit_val_batches=0).fit(module, data)
    module.eval()
    batch = data.collate(make_rankings())
    rewards = module.rewards(batch).view(4, 2)
    assert (rewards[:, 1] > rewards[:, 0]).all()
    module.export(tmp_path / "export")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "export").eval()
    output = plain(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    torch.testing.assert_close(output.logits.view(4, 2), rewards)
    # Its export is a reward for PPO as it stands.
    texts = [text for ranking in make_rankings() for text in ranking.completions]
    torch.testing.assert_close(
        RewardScorer(str(tmp_path / "export")).logits(texts), rewards.flatten().detach(),
        atol=1e-5, rtol=1e-5,
    )  # fmt: skip


def test_the_order_of_completions_does_not_matter(roberta: str, tmp_path: Path) -> None:
    data = make_data(roberta, tmp_path)
    data.setup("fit")
    module: Any = settle(RewardModel(backbone=roberta, dropout=0.0))
    turned = [
        Ranking(r.index, r.id, r.dialogue, r.completions[::-1], r.ranks[::-1])
        for r in make_rankings()
    ]
    losses = []
    for rankings in (make_rankings(), turned):
        batch = data.collate(rankings)
        losses.append(pairwise_loss(module.rewards(batch), batch["pairs"], batch["weights"]))
    torch.testing.assert_close(losses[0], losses[1])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"id": 1, "dialogue": "x", "completions": ["a"', "JSON|delimiter"),
        (b'{"id": 1, "dialogue": "x", "completions": ["a", "b"]}', "ranks"),
        (b'{"id": 1, "dialogue": "x", "completions": ["a", "b"], "ranks": [1]}', "one rank"),
        (b'{"id": 1, "dialogue": "x", "completions": ["a", "b"], "ranks": [1, 1]}', "differ"),
        (b'{"id": 1, "dialogue": "x", "completions": ["a", " "], "ranks": [1, 2]}', "empty"),
        (b'{"id": 1, "dialogue": "\xff", "completions": ["a", "b"], "ranks": [1, 2]}', "utf-8"),
    ],
)
def test_a_line_that_is_no_ranking_is_named(line: bytes, message: str, tmp_path: Path) -> None:
    good = b'{"id": 0, "dialogue": "x", "completions": ["a", "b"], "ranks": [1, 2]}'
    (tmp_path / "train.jsonl").write_bytes(good + b"\n" + line + b"\n")
    with pytest.raises(DataError, match=rf"train\.jsonl:2: .*({message})"):
        read_rankings(str(tmp_path), "train")

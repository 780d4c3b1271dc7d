"""Rewards: the frozen scorer that PPO asks, and the model that learns from rankings."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    DebertaV2Config,
    RobertaConfig,
    XLMRobertaConfig,
)

from callbacks.export import ExportCallback
from common.run_folder import RunFolder
from datamodules.consensus import Ranking, find_consensus
from datamodules.preferences import PreferenceDataModule, stack_pairs
from datamodules.rankings import Answer
from lightning_modules.ppo.reward_terms import ClassifierReward, Texts
from lightning_modules.preference_losses import pairwise_loss
from lightning_modules.reward_model import RewardModel
from lightning_modules.reward_scorer import RewardScorer, lost_positions
from tests.batches import make_trainer, settle
from tests.rows import write_rows

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
    # A margin of 0.5 a rank, over distances of 2 and 1 ranks: leads of 2 - 1 and -1 - 0.5.
    expected = 0.5 * math.log(1 + math.exp(-1)) + 0.25 * math.log(1 + math.exp(1.5))
    found = pairwise_loss(rewards, pairs, weights, torch.tensor([2.0, 1.0]), margin=0.5)
    assert found.item() == pytest.approx(expected)


def rank(index: int, *ranks: int, texts: str = "abcdef") -> Ranking:
    answer = Answer(f"r{index}", "x", tuple(texts[: len(ranks)]), None, ranks)
    return find_consensus(index, [answer])


def test_pairs_have_the_preferred_first_and_rankings_weigh_alike() -> None:
    # First ranking: 3 < 1 < 2 with three pairs; second: a tie of the first two leaves two.
    pairs, distances, weights = stack_pairs([rank(0, 2, 3, 1), rank(1, 1, 1, 2)])
    assert pairs.tolist() == [[0, 1], [2, 0], [2, 1], [3, 5], [4, 5]]
    assert distances.tolist() == [1, 1, 2, 1.5, 1.5]
    assert weights.tolist() == pytest.approx([1 / 3] * 3 + [1 / 2] * 2)


CLEAN = ["Ann asks for tea.", "Bob has a cold.", "They meet at six.", "Room two is free."]
REFERENCES = [
    {"id": f"d{i}", "dialogue": f"#Person1#: {text} How stupid!", "summary": text}
    for i, text in enumerate([*CLEAN, "He has seen a very long film of which he tells her."])
]


def make_answers() -> list[dict[str, Any]]:
    return [
        {"id": f"r{i}", "dialogue": f"#Person1#: {i}", "completions": [f"{text} How stupid.", text],
         "ranks": [2, 1]}
        for i, text in enumerate(CLEAN)
    ]  # fmt: skip


def make_rankings() -> list[Ranking]:
    answers = [
        Answer(row["id"], row["dialogue"], tuple(row["completions"]), None, tuple(row["ranks"]))
        for row in make_answers()
    ]
    return [find_consensus(i, [each]) for i, each in enumerate(answers)]


def make_data(roberta: str, folder: Path, **settings: Any) -> PreferenceDataModule:
    rows = make_answers()
    write_rows(folder / "rankings", train=rows, validation=rows, test=rows)
    write_rows(folder / "references", train=REFERENCES, validation=REFERENCES[:1])
    settings = {"batch_size": 4, "max_length": 100} | settings
    return PreferenceDataModule(str(folder / "rankings"), roberta, **settings)


def make_module(roberta: str, **settings: Any) -> RewardModel:
    return RewardModel(
        backbone=roberta,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
        dropout=0.0,
        **settings,
    )


@pytest.mark.parametrize("with_dialogue", [False, True])
def test_a_reward_model_learns_and_ppo_scores_with_its_export_as_it_was_trained(
    roberta: str, tmp_path: Path, with_dialogue: bool
) -> None:
    torch.manual_seed(0)
    references = str(tmp_path / "references")
    data = make_data(roberta, tmp_path, with_dialogue=with_dialogue, references=references)
    module = settle(make_module(roberta))
    assert module.model.config.num_labels == 1
    trainer = make_trainer(
        tmp_path, max_epochs=25, limit_val_batches=0, callbacks=[ExportCallback()]
    )
    trainer.fit(module, data)
    folder = RunFolder(tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(folder.export).eval()
    batch = data.collate(make_rankings())
    rewards = plain(**batch["inputs"]).logits.flatten().detach()
    pairs = batch["pairs"]
    assert (rewards[pairs[:, 0]] > rewards[pairs[:, 1]]).all()
    # The reference summaries score 0 on average, and the scale is on record.
    asked = ClassifierReward(str(folder.export))
    assert asked.find_problems() == [None]
    texts = Texts(*([row[name] for row in REFERENCES] for name in ("summary", "dialogue")), [])
    scores = asked.score(texts, torch.device("cpu"))
    assert scores.mean().item() == pytest.approx(0, abs=1e-6)
    about = plain.config.alignsum_reward
    assert about["std"] == pytest.approx(scores.std(unbiased=False).item(), rel=1e-4)
    assert about["references"] == 5 and about["mean_before"] != 0
    assert folder.read_summary()["reward"] == about
    # PPO's reward asks as the training did: texts, dialogues, and how they are cut.
    completions = [text for ranking in batch["rankings"] for text in ranking.completions]
    dialogues = [ranking.dialogue for ranking in batch["rankings"] for _ in ranking.completions]
    found = asked.score(Texts(completions, dialogues, []), torch.device("cpu"))
    torch.testing.assert_close(found, rewards, atol=1e-5, rtol=1e-5)
    assert asked.load().tokenizer.model_max_length == 100
    wrong = ClassifierReward(str(folder.export), with_dialogue=not with_dialogue)
    (problem,) = wrong.find_problems()
    assert problem is not None
    assert ("with their dialogue" if with_dialogue else "completions alone") in problem


@pytest.mark.parametrize("with_references", [True, False])
def test_the_test_of_a_checkpoint_is_shifted_as_the_export_is(
    with_references: bool, roberta: str, tmp_path: Path
) -> None:
    references = str(tmp_path / "references")
    data = make_data(roberta, tmp_path, references=references if with_references else None)
    module = settle(make_module(roberta))
    bias = module.model.classifier.out_proj.bias
    bias.data.fill_(7.0)
    make_trainer(tmp_path).test(module, data, verbose=False)
    if not with_references:
        assert bias.item() == 7.0
        return
    with torch.no_grad():
        rewards = [module.model(**batch).logits for batch in data.reference_batches()]
    assert torch.cat(rewards).mean().item() == pytest.approx(0, abs=1e-5)


def test_the_margin_and_the_dialogue_change_the_loss(roberta: str, tmp_path: Path) -> None:
    losses = set()
    for settings, margin in (({}, 0.0), ({}, 0.5), ({"with_dialogue": True}, 0.0)):
        data = make_data(roberta, tmp_path, **settings)
        data.setup("test")
        module = settle(make_module(roberta, margin=margin))
        losses.add(round(module.sum_losses(data.collate(make_rankings()))[0].item(), 5))
    assert len(losses) == 3
    with pytest.raises(ValueError, match="margin must be 0 or more"):
        make_module(roberta, margin=-1.0)


def test_neither_order_nor_form_of_the_rankings_matters(roberta: str, tmp_path: Path) -> None:
    ranking = {"id": "1", "dialogue": "d", "completions": ["a", "b", "c"], "ranks": [2, 1, 3]}
    shuffled = ranking | {"completions": ["c", "a", "b"], "ranks": [3, 2, 1]}
    pairs = [
        {"prompt": "d", "chosen": chosen, "rejected": rejected}
        for chosen, rejected in ("ba", "bc", "ac")
    ]
    module = settle(make_module(roberta))
    losses = []
    for rows in ([ranking], [shuffled], pairs):
        write_rows(tmp_path, train=rows, validation=rows)
        data = PreferenceDataModule(str(tmp_path), roberta, max_length=100)
        data.setup("fit")
        (batch,) = data.train_dataloader()
        losses.append([value.item() for value in module.sum_losses(batch)])
    assert losses[1:] == [pytest.approx(losses[0])] * 2
    assert losses[0][1] == 1


SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "vocab_size": 50}


@pytest.mark.parametrize(
    ("config", "lost"),
    [(RobertaConfig, 2), (XLMRobertaConfig, 2), (BertConfig, 0), (DebertaV2Config, 0)],
)
def test_position_embeddings_without_tokens_are_counted(config: Any, lost: int) -> None:
    model = AutoModelForSequenceClassification.from_config(
        config(**SMALL, num_hidden_layers=1, max_position_embeddings=20)
    )
    assert lost_positions(model) == lost
    longest = torch.full((1, 20 - lost), 7)
    assert model(input_ids=longest).logits.isfinite().all()
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, 21 - lost), 7))

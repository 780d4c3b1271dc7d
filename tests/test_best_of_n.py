"""Best-of-n and minimum-Bayes-risk decoding: what is kept, and how far it is from the start."""

import math
from typing import Any

import pytest
import torch

from lightning_modules import BestOfN
from lightning_modules.backbones import Decoding
from lightning_modules.best_of_n import consensus
from lightning_modules.ppo.reward_terms import FunctionReward
from metrics.rouge_scores import make_scorer
from tests.batches import make_batch, settle


def count_letters(predictions: list[str], dialogues: list[str], *_: Any) -> list[float]:
    assert len(predictions) == len(dialogues)
    return [float(len(text)) for text in predictions]


WORDS = FunctionReward(f"{__name__}.count_letters")


def make(t5: str, **settings: Any) -> Any:
    return settle(BestOfN(t5, decoding=Decoding(max_new_tokens=6), **settings))


@pytest.mark.parametrize("adapter", [False, True])
def test_the_best_of_the_same_samples_is_kept(adapter: bool, t5: str, trained_adapter: str) -> None:
    start = trained_adapter if adapter else None
    module = make(t5, adapter=start, samples=4, extra_rewards={"letters": WORDS})
    batch, kept = make_batch(t5), []
    real = module.score
    module.score = lambda groups, batch: kept.append(groups) or real(groups, batch)
    torch.manual_seed(3)
    found = module.generate(batch)
    assert [len(group) for group in kept[0]] == [4] * len(found)
    assert any(len(set(group)) > 1 for group in kept[0])
    assert found == [max(group, key=len) for group in kept[0]]
    assert not any(p.requires_grad for p in module.parameters())


def test_without_a_reward_the_summary_that_agrees_with_the_others_is_kept(t5: str) -> None:
    groups = [["a b c d", "a b c e", "x y z w"], ["p q", "r s", "r s"]]
    scores = consensus(groups)
    rouge = make_scorer(["rougeL"])
    for group, found in zip(groups, scores.tolist(), strict=True):
        for i, one in enumerate(group):
            others = [text for j, text in enumerate(group) if j != i]
            each = [rouge.score(text, one)["rougeL"].fmeasure for text in others]
            assert found[i] == pytest.approx(sum(each) / len(each))
    assert scores.argmax(dim=1).tolist() == [0, 1]
    assert len(make(t5, samples=3).generate(make_batch(t5))) == len(make_batch(t5)["ids"])


@pytest.mark.parametrize("n", [2, 4, 16])
def test_the_measured_kl_agrees_with_the_analytic_one(n: int) -> None:
    """On 5,000 outcomes with rewards: KL(best of n || start) by its exact distribution."""
    generator = torch.Generator().manual_seed(n)
    p = torch.rand(5_000, generator=generator, dtype=torch.double).softmax(dim=0)
    rewards = torch.rand(5_000, generator=generator)
    order = rewards.argsort()
    upper = p[order].cumsum(dim=0)
    lower = upper - p[order]
    best = upper**n - lower**n  # P(the largest of n rewards is this one)
    exact = float((best * (best / p[order]).log()).sum())
    bound = math.log(n) - (n - 1) / n
    assert exact == pytest.approx(bound, abs=1e-3)
    # Samples of best-of-n agree within their own interval.
    draws = torch.multinomial(p, 4_000 * n, replacement=True, generator=generator).view(-1, n)
    kept = draws.gather(1, rewards[draws].argmax(dim=1, keepdim=True))[:, 0]
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    logs = (best / p[order]).log()[place[kept]]
    assert abs(float(logs.mean()) - bound) < 4 * float(logs.std()) / math.sqrt(len(logs))


def test_a_run_logs_the_bound_and_ordinary_decoding(t5: str) -> None:
    module, logged = make(t5, samples=4, extra_rewards={"letters": WORDS}).eval(), {}
    module.log_mean = lambda name, value, *_, **__: logged.update({name: float(value)})
    batch = make_batch(t5)
    found = module.test_step(batch, 0)
    assert logged["test/kl_bound"] == pytest.approx(math.log(4) - 3 / 4)
    assert found["predictions_before"] == module.backbone.generate(make_batch(t5), module.decoding)
    assert len(found["predictions"]) == len(found["predictions_before"])


def test_settings_out_of_range_are_refused(t5: str) -> None:
    for settings in ({"samples": 1}, {"temperature": 0.0}):
        with pytest.raises(ValueError, match="samples must be at least 2 and temperature above 0"):
            BestOfN(t5, **settings)

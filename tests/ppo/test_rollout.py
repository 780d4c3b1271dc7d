"""Tokens and their log-probabilities: what was sampled is what is scored."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_modules.adapters import LoRASettings, attach_lora, reference_policy
from lightning_modules.backbones import load_backbone, set_dropout
from lightning_modules.ppo.rollout import (
    Prompts,
    Sampling,
    encode,
    response_mask,
    roll_out,
    sample,
    score_tokens,
    shift_right,
)
from lightning_modules.ppo.value_head import ValueHead
from tests.batches import make_batch

EOS = 1
SETTINGS = Sampling(max_new_tokens=9, temperature=0.7, eos_id=EOS)


@pytest.fixture(scope="module")
def policy(t5: str) -> Any:
    """A LoRA policy that is no longer its reference."""
    torch.manual_seed(0)
    model = attach_lora(load_backbone(t5), LoRASettings(r=4, alpha=8, dropout=0.1))
    set_dropout(model, 0.0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.train()


@pytest.fixture(scope="module")
def prompts(t5: str) -> Prompts:
    batch = make_batch(t5)
    return Prompts(batch["input_ids"], batch["attention_mask"])


def slow_logprobs(model: Any, prompt: Tensor, response: Tensor, temperature: float) -> list[float]:
    """One row, no padding, no cache, one token at a time, straight from the definition."""
    prefix, result = [0], []
    for token in response.tolist():
        logits = model(
            input_ids=prompt[None], decoder_input_ids=torch.tensor([prefix]), use_cache=False
        ).logits[0, -1]
        result.append(float((logits / temperature).log_softmax(-1)[token]))
        prefix.append(token)
    return result


def test_shift_right_by_hand() -> None:
    assert shift_right(torch.tensor([[5, 6, 1], [7, 1, 0]]), 0).tolist() == [[0, 5, 6], [0, 7, 1]]


def test_mask_covers_exactly_y1_to_eos() -> None:
    responses = torch.tensor(
        [
            [5, 6, EOS, 0],  # ended early
            [5, 6, 7, EOS],  # ended with the last token
            [5, 6, 7, 8],  # hit the limit
            [EOS, 0, 0, 0],  # said nothing
            [0, 5, EOS, 0],  # sampled the pad id as a first token: it counts
            [5, EOS, EOS, 7],  # whatever stands behind the first EOS does not
        ]
    )
    mask, finished = response_mask(responses, EOS)
    assert mask.sum(dim=1).tolist() == [3, 4, 4, 1, 3, 2]
    assert mask[:, 0].all()
    assert finished.tolist() == [True, True, False, True, True, True]


@torch.no_grad()
def test_logprobs_match_the_slow_version(policy: Any, prompts: Prompts) -> None:
    torch.manual_seed(1)
    responses, _ = sample(policy.get_base_model(), prompts, encode(policy, prompts), SETTINGS)
    mask, _ = response_mask(responses, EOS)
    fast = score_tokens(policy, prompts, responses, SETTINGS.temperature).logprobs
    for row in range(len(responses)):
        real, n = prompts.attention_mask[row].bool(), int(mask[row].sum())
        expected = slow_logprobs(
            policy, prompts.input_ids[row][real], responses[row, :n], SETTINGS.temperature
        )
        torch.testing.assert_close(fast[row, :n], torch.tensor(expected), atol=1e-5, rtol=0)


@torch.no_grad()
def test_logprobs_do_not_depend_on_the_batch(policy: Any, prompts: Prompts) -> None:
    torch.manual_seed(2)
    rollout, _ = roll_out(policy, ValueHead(32), prompts, SETTINGS)
    for rows in (torch.tensor([3]), torch.tensor([4, 0]), torch.tensor([5, 2, 1])):
        part = rollout.rows(rows)
        alone = score_tokens(policy, part.prompts, part.responses, SETTINGS.temperature)
        gap = (alone.logprobs - part.logprobs).abs()[part.mask].max()
        assert gap < 1e-5


@torch.no_grad()
def test_entropy_and_values_match_their_definitions(policy: Any, prompts: Prompts) -> None:
    torch.manual_seed(3)
    head = ValueHead(32)
    rollout, _ = roll_out(policy, head, prompts, SETTINGS)
    output = policy(
        input_ids=prompts.input_ids,
        attention_mask=prompts.attention_mask,
        decoder_input_ids=shift_right(rollout.responses, 0),
        output_hidden_states=True,
    )
    entropy = torch.distributions.Categorical(logits=output.logits / 0.7).entropy()
    torch.testing.assert_close(rollout.entropy, entropy, atol=1e-5, rtol=1e-5)
    # The states that the head reads are the ones that the output head reads.
    hidden = output.decoder_hidden_states[-1]
    lm_head = policy.get_base_model().lm_head
    torch.testing.assert_close(lm_head(hidden), output.logits, atol=1e-5, rtol=1e-5)
    values = hidden @ head.linear.weight[0] + head.linear.bias
    torch.testing.assert_close(rollout.values, values, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_reference_is_the_backbone_alone_for_a_fresh_lora(
    policy: Any, prompts: Prompts, t5: str
) -> None:
    torch.manual_seed(4)
    rollout, _ = roll_out(policy, ValueHead(32), prompts, SETTINGS)
    alone = score_tokens(load_backbone(t5), prompts, rollout.responses, SETTINGS.temperature)
    torch.testing.assert_close(rollout.ref_logprobs, alone.logprobs, atol=1e-5, rtol=1e-5)
    assert (rollout.logprobs - rollout.ref_logprobs).abs()[rollout.mask].max() > 0.01
    with reference_policy(policy):
        pass
    again = score_tokens(policy, prompts, rollout.responses, SETTINGS.temperature)
    torch.testing.assert_close(again.logprobs, rollout.logprobs)


@torch.no_grad()
def test_no_token_is_lost_when_the_limit_is_hit(policy: Any, prompts: Prompts) -> None:
    torch.manual_seed(5)
    responses, logits = sample(
        policy.get_base_model(), prompts, encode(policy, prompts), SETTINGS, True
    )
    assert responses.shape[1] == len(logits) <= 9
    mask, finished = response_mask(responses, EOS)
    assert (mask.sum(dim=1)[~finished] == 9).all()
    assert not finished.all()


@torch.no_grad()
def test_only_the_tokenizers_eos_ends_a_response(
    policy: Any, prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model whose own config has further ends would stop where the mask does not."""
    monkeypatch.setattr(policy.generation_config, "eos_token_id", [EOS, *range(60, 200)])
    monkeypatch.setattr(
        policy.get_base_model().generation_config, "eos_token_id", [EOS, *range(60, 200)]
    )
    torch.manual_seed(5)
    responses, _ = sample(policy.get_base_model(), prompts, encode(policy, prompts), SETTINGS)
    mask, finished = response_mask(responses, EOS)
    assert (mask.sum(dim=1)[~finished] == 9).all()
    assert (responses[~finished] != 0).all()


@torch.no_grad()
def test_first_tokens_are_drawn_from_the_softmax(policy: Any, prompts: Prompts) -> None:
    draws, temperature = 20_000, 0.7
    torch.manual_seed(6)
    one = Prompts(prompts.input_ids[:1], prompts.attention_mask[:1])
    many = Prompts(one.input_ids.expand(2000, -1), one.attention_mask.expand(2000, -1))
    settings = Sampling(max_new_tokens=1, temperature=temperature, eos_id=EOS)
    encoded = encode(policy, many)
    tokens = torch.cat(
        [
            sample(policy.get_base_model(), many, encoded, settings)[0][:, 0]
            for _ in range(draws // 2000)
        ]
    )
    start = torch.zeros(1, 1, dtype=torch.long)
    logits = policy(
        input_ids=one.input_ids, attention_mask=one.attention_mask, decoder_input_ids=start
    ).logits[0, 0]
    expected = (logits / temperature).softmax(-1) * draws
    observed = torch.bincount(tokens, minlength=len(expected))
    statistic = ((observed - expected).square() / expected).sum()
    freedom = len(expected) - 1
    # Mean of a chi-squared variable and five of its standard deviations.
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5
    # The test has the power to see generate's own default, the 50 likeliest tokens.
    assert (observed > 0).sum() > 200

"""Tokens and their log-probabilities: what was sampled is what is scored."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_modules.backbones import (
    Backbone,
    Prompts,
    Samples,
    Sampling,
    load_backbone,
    set_dropout,
)
from lightning_modules.policies.adapters import attach_adapter, reference_backbone, use_adapter
from lightning_modules.policies.lora import LoRASettings
from lightning_modules.ppo.rollout import Rollout, response_mask, score_in_chunks
from lightning_modules.ppo.rollout import roll_out as roll_out_with
from lightning_modules.ppo.value_head import ValueHead
from tests.batches import make_batch
from tests.models import move_lora, wrap

EOS = 1
SETTINGS = Sampling(max_new_tokens=9, temperature=0.7)


def likely_to_end(model: Any) -> Any:
    """Let responses have many lengths: one token in ten is EOS."""
    bias = torch.zeros(model.lm_head.weight.shape[0])
    bias[EOS] = 2.5
    model.lm_head.bias = torch.nn.Parameter(bias, requires_grad=False)
    return model


@pytest.fixture(scope="module")
def policy(t5: str) -> Any:
    """A LoRA policy that is no longer its reference."""
    torch.manual_seed(0)
    backbone = likely_to_end(load_backbone(t5))
    model = attach_adapter(backbone, LoRASettings(r=4, alpha=8, dropout=0.1).config())
    set_dropout(model, 0.0)
    move_lora(model)
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


def roll_out(model: Any, *given: Any, **settings: Any) -> Rollout:
    backbone = wrap(model)
    return roll_out_with(backbone, partial(reference_backbone, backbone), *given, **settings)


def test_decoder_input_is_the_start_token_and_the_tokens_before(
    policy: Any, prompts: Prompts
) -> None:
    backbone, seen = wrap(policy), []
    hook = backbone.base.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    responses = torch.tensor([[5, 6, 1], [7, 1, 0]])
    mask, _ = response_mask(responses, EOS)
    backbone.score(backbone.read(prompts.rows(torch.tensor([0, 1]))), responses, mask)
    hook.remove()
    assert seen[0].tolist() == [[0, 5, 6], [0, 7, 1]]


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


def draw(backbone: Backbone, context: Any, settings: Sampling = SETTINGS) -> Samples:
    return backbone.sample(context, settings)


@torch.no_grad()
@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("chunk", [1, 4, 16])
def test_logprobs_match_the_slow_version(
    policy: Any, prompts: Prompts, reuse: bool, chunk: int
) -> None:
    torch.manual_seed(1)
    made = roll_out(policy, prompts, SETTINGS, reuse_sampler=reuse, chunk=chunk)
    assert not made.finished.all()
    assert made.mask.sum(dim=1).unique().numel() > 1
    for row in range(len(made.responses)):
        real, n = prompts.attention_mask[row].bool(), int(made.mask[row].sum())
        prompt, response = prompts.input_ids[row][real], made.responses[row, :n]
        expected = torch.tensor(slow_logprobs(policy, prompt, response, 0.7))
        torch.testing.assert_close(made.logprobs[row, :n], expected, atol=1e-5, rtol=0)
        with use_adapter(policy, None):
            expected = torch.tensor(slow_logprobs(policy, prompt, response, 0.7))
        torch.testing.assert_close(made.ref_logprobs[row, :n], expected, atol=1e-5, rtol=0)
        assert not made.logprobs[row, n:].any()
        assert not made.ref_logprobs[row, n:].any()
    assert (made.logprobs - made.ref_logprobs).abs().max() > 0.01


@torch.no_grad()
def test_logprobs_do_not_depend_on_the_batch(policy: Any, prompts: Prompts) -> None:
    torch.manual_seed(2)
    made = roll_out(policy, prompts, SETTINGS)
    for rows in (torch.tensor([3]), torch.tensor([4, 0]), torch.tensor([5, 2, 1])):
        part = made.rows(rows)
        assert part.prompts.input_ids.shape[1] == part.prompts.attention_mask.sum(1).max()
        backbone = wrap(policy)
        context = backbone.read(part.prompts).rows(part.owner)
        alone = backbone.score(context, part.responses, part.mask, SETTINGS.temperature)
        gap = (alone.logprobs - made.logprobs[rows, : part.mask.shape[1]]).abs().max()
        assert gap < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("reuse", [True, False])
def test_entropy_and_values_match_their_definitions(
    policy: Any, prompts: Prompts, reuse: bool
) -> None:
    torch.manual_seed(3)
    head = ValueHead(32)
    made = roll_out(policy, prompts, SETTINGS, head, reuse_sampler=reuse)
    output = policy(
        input_ids=prompts.input_ids,
        attention_mask=prompts.attention_mask,
        decoder_input_ids=torch.nn.functional.pad(made.responses[:, :-1], (1, 0)),
        output_hidden_states=True,
    )
    entropy = torch.distributions.Categorical(logits=output.logits / 0.7).entropy() * made.mask
    torch.testing.assert_close(made.entropy, entropy, atol=1e-5, rtol=1e-5)
    # The states that the head reads are the ones that the output head reads.
    hidden = output.decoder_hidden_states[-1]
    lm_head = policy.get_base_model().lm_head
    torch.testing.assert_close(lm_head(hidden), output.logits, atol=1e-5, rtol=1e-5)
    values = (hidden @ head.linear.weight[0] + head.linear.bias) * made.mask
    torch.testing.assert_close(made.values, values, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_samples_of_a_prompt_share_its_encoder_pass(policy: Any, prompts: Prompts) -> None:
    rows: list[int] = []
    encoder = policy.get_base_model().get_encoder()
    hook = encoder.register_forward_hook(lambda *given: rows.append(len(given[-1][0])))
    torch.manual_seed(4)
    made = roll_out(policy, prompts, SETTINGS, samples=3)
    hook.remove()
    assert [count for count in rows if count > 1] == [6, 6]  # policy and reference
    assert made.owner.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5]
    assert len({tuple(row) for row in made.responses[:3].tolist()}) == 3
    for row in (0, 4, 17):
        prompt = int(made.owner[row])
        inside = prompts.attention_mask[prompt].bool()
        expected = slow_logprobs(
            policy, prompts.input_ids[prompt][inside], made.responses[row][made.mask[row]], 0.7
        )
        torch.testing.assert_close(
            made.logprobs[row][made.mask[row]], torch.tensor(expected), atol=1e-5, rtol=0
        )
    part = made.rows(torch.tensor([16, 4, 3]))
    assert part.owner.tolist() == [1, 0, 0]
    assert torch.equal(part.prompts.attention_mask.sum(1), prompts.attention_mask[[1, 5]].sum(1))


@torch.no_grad()
def test_rows_that_have_ended_are_dropped_and_change_nothing(policy: Any, prompts: Prompts) -> None:
    sizes: list[int] = []
    decoder = policy.get_base_model().get_decoder()
    handle = decoder.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    torch.manual_seed(8)
    drawn = draw(wrap(policy), wrap(policy).read(prompts), SETTINGS._replace(max_new_tokens=40))
    handle.remove()
    mask, finished = response_mask(drawn.responses, EOS)
    assert max(sizes) == 6 and sizes[-1] <= 3 and finished.sum() >= 4
    assert not drawn.responses[~mask].any()
    scores = score_in_chunks(
        wrap(policy), wrap(policy).read(prompts), torch.arange(6), drawn.responses, mask, 0.7, 2
    )
    torch.testing.assert_close(drawn.logprobs, scores.logprobs, atol=1e-5, rtol=0)


@torch.no_grad()
def test_only_the_tokenizers_eos_ends_a_response(
    policy: Any, prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the model's own generation config asks for has no part in a rollout."""
    config = policy.get_base_model().generation_config
    monkeypatch.setattr(config, "eos_token_id", [EOS, *range(60, 200)])
    monkeypatch.setattr(config, "suppress_tokens", list(range(10, 250)))
    torch.manual_seed(5)
    responses = draw(wrap(policy), wrap(policy).read(prompts)).responses
    mask, finished = response_mask(responses, EOS)
    assert (mask.sum(dim=1)[~finished] == 9).all()
    assert (responses[~finished] != 0).all()
    assert responses.max() > 9


@torch.no_grad()
def test_first_tokens_are_drawn_from_the_softmax(policy: Any, prompts: Prompts) -> None:
    draws, temperature = 20_000, 0.7
    torch.manual_seed(6)
    one = Prompts(prompts.input_ids[:1], prompts.attention_mask[:1])
    encoded = wrap(policy).read(one).rows(torch.zeros(2000, dtype=torch.long))
    settings = Sampling(max_new_tokens=1, temperature=temperature)
    tokens = torch.cat(
        [draw(wrap(policy), encoded, settings).responses[:, 0] for _ in range(draws // 2000)]
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
    # The test has the power to see a filter, such as generate's own, the 50 likeliest tokens.
    assert (observed > 0).sum() > 200

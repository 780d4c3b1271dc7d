"""The gate before the first update: measure what must hold at step 0, or stop the run.

A wrong reference, a dropout left on, a mask off by one, a filtered sampler or a head applied
wrongly causes no error and often a falling loss. Each shows in one of these figures before anything
has been learned, whatever the architecture.
"""

import hashlib
from math import isfinite
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from common.exits import AlignsumError
from lightning_modules.backbones import Backbone, Prompts, Sampling, find_noise
from lightning_modules.fsdp import full
from lightning_modules.ppo.kl import k1, per_sequence
from lightning_modules.ppo.rollout import Reference, response_mask, roll_out

GATE_ROWS = 8
"""Number of prompts that the gate uses."""

GATE_DRAWS = 1024
"""Tokens that the gate samples to find a filter."""

GATE_LENGTH = 64
"""Longest response among these, in tokens."""


class GateFigures(NamedTuple):
    """What the gate measures on a few sampled responses; see :func:`measure`.

    plain_gap: largest difference of a token's log-probability between the scorer and the model's
    own ``model(input_ids, attention_mask, decoder_input_ids).logits``, nats; must be 0. kl: largest
    absolute sequence KL (k1) between policy and reference, nats; must be 0. log_ratio: largest
    |log pi - log pi_old| of a token when the tokens are scored again in minibatches, as the update
    does; must be 0. mask_errors: tokens where the mask differs from a plain reading of y1..EOS.
    sampler_gap: largest difference between the log-probability that a token was drawn with and that
    of the scorer, nats. filtering: evidence that the sampler leaves unlikely tokens out, whatever
    log-probabilities it reports, nats; see :func:`filtering`.
    """

    plain_gap: float
    kl: float
    log_ratio: float
    mask_errors: int
    sampler_gap: float
    filtering: float

    def in_words(self) -> str:
        """Describe figures that passed, for the log."""
        return (
            f"The policy passed the gate: KL to the reference {self.kl:.2g}, log-ratio "
            f"{self.log_ratio:.2g}, mask exact, scores equal the model's own forward pass "
            f"({self.plain_gap:.2g}), sampler within {self.sampler_gap:.2g}"
        )


class Tolerance(NamedTuple):
    """Largest figures that pass; see :class:`GateFigures`.

    In fp32 passes differ by rounding only. Under autocast to bf16 or fp16, cached decoding and
    minibatches of another shape round differently: by hundredths of a nat per token with the 12
    layers of FLAN-T5-base, and by up to 0.23 with the 30 of SmolLM2-135M.
    """

    plain_gap: float = 1e-3
    kl: float = 1e-3
    log_ratio: float = 1e-4
    sampler_gap: float = 1e-3
    filtering: float = 30.0


FP32 = Tolerance()
BF16 = Tolerance(plain_gap=0.5, log_ratio=0.5, sampler_gap=0.5)


class GateError(AlignsumError):
    """Training would start from something that the algorithm does not assume."""


@torch.no_grad()
def measure(
    backbone: Backbone,
    reference: Reference,
    prompts: Prompts,
    settings: Sampling,
    minibatch_size: int = 4,
) -> GateFigures:
    """Measure the gate's figures on a few prompts.

    Args:
        backbone: The policy, in the mode in which it trains.
        reference: Opens the reference policy.
        prompts: A few prompts.
        settings: How to sample.
        minibatch_size: Rows that the update scores together.
    """
    count = len(prompts.input_ids)
    drawn = roll_out(backbone, reference, prompts, settings, reuse_sampler=True, chunk=count)
    mask, temperature = drawn.mask, settings.temperature
    scored = backbone.score(backbone.read(prompts), drawn.responses, mask, temperature).logprobs
    chances = backbone.plain_distribution(prompts, drawn.responses, temperature)
    plain = chances.gather(2, drawn.responses[..., None])[..., 0]
    gaps = []
    for rows in torch.arange(count, device=mask.device).split(minibatch_size):
        part = drawn.rows(rows)
        context = backbone.read(part.prompts).rows(part.owner)
        again = backbone.score(context, part.responses, part.mask, temperature).logprobs
        gaps.append((again - scored[rows, : again.shape[1]]).abs().max())
    return GateFigures(
        plain_gap=float((scored - plain)[mask].abs().max()),
        kl=float(per_sequence(k1(scored, drawn.ref_logprobs), mask).abs().max()),
        log_ratio=float(torch.stack(gaps).max()),
        mask_errors=count_mask_errors(drawn.responses, mask, backbone.eos_id),
        sampler_gap=float((drawn.logprobs - scored).abs().max()),
        filtering=filtering(draw_percentiles(backbone, prompts, settings, chances[mask])),
    )


def count_mask_errors(responses: Tensor, mask: Tensor, eos_id: int) -> int:
    """Count where a mask differs from y1..EOS, read row by row in the plainest way."""
    wrong = 0
    for tokens, marks in zip(responses.tolist(), mask.tolist(), strict=True):
        end = tokens.index(eos_id) + 1 if eos_id in tokens else len(tokens)
        wrong += sum(mark != (t < end) for t, mark in enumerate(marks))
    return wrong


def draw_percentiles(
    backbone: Backbone, prompts: Prompts, settings: Sampling, chances: Float[Tensor, "N V"]
) -> Float[Tensor, " D"]:
    """Sample about 1,000 tokens; return how much probability all less likely tokens hold.

    A confident model seldom draws from the tail that a filter would cut off. The tokens are
    therefore sampled at a temperature that spreads the probability over the vocabulary.

    Args:
        backbone: The policy.
        prompts: P prompts.
        settings: How the run samples.
        chances: log p of all tokens at some positions, at the temperature of the run.

    Returns:
        For each drawn token, the total probability of all tokens that are less likely. Without a
        filter these are uniform on [0, 1] or, as probabilities are discrete, somewhat smaller.
    """
    spread = float(chances.masked_fill(chances.isinf(), 0.0).std(dim=-1).mean())
    length = min(GATE_LENGTH, settings.max_new_tokens)
    hot = Sampling(length, settings.temperature * max(1.0, 2 * spread))
    owner = torch.arange(-(-GATE_DRAWS // length), device=prompts.input_ids.device)
    context, percentiles = backbone.read(prompts), []
    for rows in (owner % len(prompts.input_ids)).chunk(4):  # bounds the memory
        responses = backbone.sample(context.rows(rows), hot).responses
        mask, _ = response_mask(responses, backbone.eos_id)
        part = prompts.rows(rows)
        logprobs = backbone.plain_distribution(part, responses, hot.temperature)[mask]
        drawn = logprobs.gather(1, responses[mask][:, None])
        percentiles.append((logprobs.exp() * (logprobs < drawn)).sum(dim=1))
    return torch.cat(percentiles)


def filtering(percentiles: Float[Tensor, " D"]) -> float:
    """Return the evidence that sampled tokens are likelier than their distribution allows, in nats.

    Without a filter the number of percentiles up to x is at least Binomial(D, x), and by Chernoff's
    bound P(share <= c) <= exp(-D KL(c, x)), where KL is that between two coins. The evidence is the
    largest exponent over all x (Berk and Jones 1979). At 30 nats and 1,024 draws a false alarm has
    probability below 1e-10, and a filter that removes 3 % of the probability is always found, as
    no percentile is then below 0.03: D KL(0, 0.03) = 31.

    Args:
        percentiles: See :func:`draw_percentiles`.
    """
    x = percentiles.double().clamp(0, 1 - 1e-6).sort().values
    share = torch.arange(len(x), device=x.device) / len(x)  # of the percentiles below each x
    kl = share.xlogy(share / x) + (1 - share).xlogy((1 - share) / (1 - x))
    return float(len(x) * torch.where(share < x, kl, 0.0).max())


CAUSES = {
    "plain_gap": "the scorer does not compute what the model's own forward pass computes on the "
    "same rows, so its log-probabilities are not this model's",
    "kl": "the reference is not the policy's starting point (the reference of a trained adapter is "
    "that adapter, frozen)",
    "log_ratio": "two passes of one policy differ (dropout is on, or outputs depend on the rest of "
    "the batch)",
    "sampler_gap": "tokens are drawn from one distribution and scored under another (a filter, "
    "another temperature, or cached passes that differ from full ones)",
    "filtering": "the sampler leaves unlikely tokens out (top-k, top-p, a lower temperature)",
}
"""The usual cause of each figure that is off."""


def check(figures: GateFigures, tolerance: Tolerance, noise: list[str] | None = None) -> None:
    """Stop the run if a figure is off.

    Args:
        figures: What was measured.
        tolerance: What passes.
        noise: Dropouts and similar that are on; named in the error.

    Raises:
        GateError: With every figure, and the usual cause of each that is off.
    """
    failed = [
        f"{name} {value:.3g} > {limit:g}: {CAUSES[name]}"
        for name, limit in tolerance._asdict().items()
        if not (isfinite(value := getattr(figures, name)) and value <= limit)
    ]
    if figures.mask_errors:
        failed.append(f"mask_errors {figures.mask_errors}: the mask is not y1..EOS")
    if failed:
        on = f"\nOn are {', '.join(noise[:5])}" if noise else ""
        lines = "\n- ".join(("training stopped before its first update.", *failed))
        raise GateError(f"{lines}\n{figures}{on}")


def pass_gate(
    backbone: Backbone,
    reference: Reference,
    prompts: Prompts,
    settings: Sampling,
    minibatch_size: int,
    is_exact: bool,
) -> GateFigures:
    """Measure on the first prompts of a batch, and stop the run if a figure is off.

    Args:
        backbone: The policy.
        reference: Opens the reference policy.
        prompts: Prompts of the first batch.
        settings: How to sample.
        minibatch_size: Rows that the update scores together.
        is_exact: Whether the run computes in fp32 or better.

    Raises:
        GateError: With the figures.
    """
    few = prompts.rows(torch.arange(min(GATE_ROWS, len(prompts.input_ids))))
    found = measure(backbone, reference, few, settings, minibatch_size)
    check(found, FP32 if is_exact else BF16, find_noise(backbone.base))
    return found


def fingerprint(model: Any, reference: Any) -> str:
    """Hash the weights of the reference, to recognize it again.

    Args:
        model: The policy; its frozen weights count.
        reference: A separate reference model, or None.
    """
    digest = hashlib.sha256()
    for name, weights in (model if reference is None else reference).named_parameters():
        if not weights.requires_grad:
            digest.update(name.encode())
            # A copy: FSDP could no longer free a gathered weight whose memory numpy shares.
            copy = full(weights).detach().to("cpu", copy=True)
            digest.update(copy.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()

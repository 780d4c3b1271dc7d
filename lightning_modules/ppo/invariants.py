"""The gate before the first update: what must hold at step 0, measured, or the run stops.

A wrong reference, a dropout left on, a mask off by one or a filtered sampler gives no error and
often a falling loss. Each shows in one of these figures before anything has been learnt.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_modules.ppo.kl import k1, per_sequence
from lightning_modules.ppo.rollout import Prompts, Sampling, roll_out, score_tokens
from lightning_modules.ppo.value_head import ValueHead


class StepZero(NamedTuple):
    """The gate's figures.

    kl: mean over rows of the sequence KL (k1) between policy and reference, nats; 0 wanted.
    log_ratio: largest |log pi - log pi_old| of any token when the tokens are scored again as the
    update does it; 0 wanted. mask_errors: tokens on which the mask and a plain reading of y1..EOS
    differ. filtered: token ids that the sampler could not draw. sampler_gap: largest difference
    between a token's log-probability in the sampler and in a teacher-forced pass, nats.
    """

    kl: float
    log_ratio: float
    mask_errors: int
    filtered: int
    sampler_gap: float


class Tolerance(NamedTuple):
    """Largest figures that pass; see :class:`StepZero`.

    In fp32 the passes differ by rounding only. Under bf16 autocast cached decoding and minibatches
    of another shape round differently, up to a few hundredths of a nat a token; the KL is between
    two passes of one shape and stays exact.
    """

    kl: float = 1e-4
    log_ratio: float = 1e-4
    sampler_gap: float = 1e-3


FP32 = Tolerance()
BF16 = Tolerance(kl=1e-4, log_ratio=0.2, sampler_gap=0.3)


class GateError(RuntimeError):
    """PPO would start from something that is not what the algorithm assumes."""


def count_mask_errors(responses: Tensor, mask: Tensor, eos_id: int) -> int:
    """Count where a mask differs from y1..EOS, read row by row in the plainest way."""
    wrong = 0
    for tokens, marks in zip(responses.tolist(), mask.tolist(), strict=True):
        end = tokens.index(eos_id) + 1 if eos_id in tokens else len(tokens)
        wrong += sum(mark != (t < end) for t, mark in enumerate(marks))
    return wrong


def sampler_figures(
    sampler_logits: list[Tensor], responses: Tensor, mask: Tensor, logprobs: Tensor
) -> tuple[int, float]:
    """Compare the distribution that was sampled with the one that is scored.

    Args:
        sampler_logits: T tensors [B, V], the logits that the sampler drew from.
        responses: [B, T].
        mask: True at y1..EOS, [B, T].
        logprobs: log pi(y_t) of the teacher-forced pass, [B, T].

    Returns:
        How many token ids the sampler had ruled out, and the largest gap in nats.
    """
    logits = torch.stack(sampler_logits, dim=1).float()
    filtered = int(torch.isinf(logits[mask]).any(dim=0).sum())
    drawn = logits.log_softmax(dim=-1).gather(-1, responses.unsqueeze(-1)).squeeze(-1)
    gap = (drawn - logprobs).abs()[mask].max()
    return filtered, float(gap)


@torch.no_grad()
def measure(
    model: Any, value_head: ValueHead, prompts: Prompts, settings: Sampling, minibatch_size: int
) -> StepZero:
    """Take the gate's figures on a few prompts.

    Args:
        model: The backbone with the policy's adapter active, in the mode in which it trains.
        value_head: Of the policy.
        prompts: A few prompts.
        settings: How to sample.
        minibatch_size: Rows that the update scores together.
    """
    rollout, sampler_logits = roll_out(model, value_head, prompts, settings, keep_logits=True)
    gaps = []
    for rows in torch.arange(len(rollout.responses)).split(minibatch_size):
        part = rollout.rows(rows.to(rollout.responses.device))
        again = score_tokens(model, part.prompts, part.responses, settings.temperature, value_head)
        gaps.append((again.logprobs - part.logprobs).abs()[part.mask].max())
    filtered, sampler_gap = sampler_figures(
        sampler_logits, rollout.responses, rollout.mask, rollout.logprobs
    )
    return StepZero(
        kl=float(per_sequence(k1(rollout.logprobs, rollout.ref_logprobs), rollout.mask).mean()),
        log_ratio=float(torch.stack(gaps).max()),
        mask_errors=count_mask_errors(rollout.responses, rollout.mask, settings.eos_id),
        filtered=filtered,
        sampler_gap=sampler_gap,
    )


def check(figures: StepZero, tolerance: Tolerance) -> None:
    """Stop the run where a figure is off.

    Raises:
        GateError: With every figure, and for each that is off what usually causes it.
    """
    causes = {
        f"|KL to the reference| {abs(figures.kl):.3g} > {tolerance.kl:g}: the reference is not the "
        "policy's starting point (a trained adapter's reference is that adapter, frozen)": (
            not abs(figures.kl) <= tolerance.kl
        ),
        f"log-ratio {figures.log_ratio:.3g} > {tolerance.log_ratio:g}: two passes of one policy "
        "differ (dropout is on, or the temperature is not the same)": (
            not figures.log_ratio <= tolerance.log_ratio
        ),
        f"{figures.mask_errors} tokens are masked wrongly: the mask is not y1..EOS": (
            figures.mask_errors > 0
        ),
        f"{figures.filtered} token ids can never be sampled: the sampler filters (top_k, top_p, "
        "min_length, suppressed tokens in the model's generation config)": figures.filtered > 0,
        f"sampler and scorer differ by {figures.sampler_gap:.3g} > {tolerance.sampler_gap:g} nats: "
        "tokens are drawn from one distribution and scored under another": (
            not figures.sampler_gap <= tolerance.sampler_gap
        ),
    }
    if failed := [cause for cause, off in causes.items() if off]:
        raise GateError(
            "PPO stopped before its first update.\n- " + "\n- ".join(failed) + f"\n{figures}"
        )

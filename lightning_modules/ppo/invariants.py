"""The gate before the first update: what must hold at step 0, measured, or the run stops.

A wrong reference, a dropout left on, a mask off by one or a filtered sampler gives no error and
often a falling loss. Each shows in one of these figures before anything has been learnt.
"""

import hashlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from common.exits import GateError
from lightning_modules.fsdp import full
from lightning_modules.ppo.kl import k1, per_sequence
from lightning_modules.ppo.rollout import roll_out
from lightning_modules.ppo.sampling import Sampling
from lightning_modules.ppo.token_scores import Prompts, encode, score_tokens


class StepZero(NamedTuple):
    """The gate's figures.

    kl: mean over rows of the sequence KL (k1) between policy and reference, nats; 0 wanted.
    log_ratio: largest |log pi - log pi_old| of any token when the tokens are scored again as the
    update does it; 0 wanted. mask_errors: tokens on which the mask and a plain reading of y1..EOS
    differ. sampler_gap: largest difference between the log-probability that a token was drawn with
    and that of a teacher-forced pass, nats.
    """

    kl: float
    log_ratio: float
    mask_errors: int
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


def count_mask_errors(responses: Tensor, mask: Tensor, eos_id: int) -> int:
    """Count where a mask differs from y1..EOS, read row by row in the plainest way."""
    wrong = 0
    for tokens, marks in zip(responses.tolist(), mask.tolist(), strict=True):
        end = tokens.index(eos_id) + 1 if eos_id in tokens else len(tokens)
        wrong += sum(mark != (t < end) for t, mark in enumerate(marks))
    return wrong


@torch.no_grad()
def measure(
    model: Any,
    prompts: Prompts,
    settings: Sampling,
    reference: Any = None,
    shared_encoder: bool = False,
    minibatch_size: int = 4,
) -> StepZero:
    """Take the gate's figures on a few prompts.

    Args:
        model: The policy, its adapter active, in the mode in which it trains.
        prompts: A few prompts.
        settings: How to sample.
        reference: A model of its own for the reference, if there is one.
        shared_encoder: Whether policy and reference share the encoder's output.
        minibatch_size: Rows that the update scores together.
    """
    drawn = roll_out(
        model, prompts, settings, None, reference,
        shared_encoder=shared_encoder, reuse_sampler=True, chunk=len(prompts.input_ids),
    )  # fmt: skip
    mask, temperature = drawn.mask, settings.temperature
    encoded = encode(model, prompts)
    scored = score_tokens(model, encoded, drawn.responses, mask, temperature).logprobs
    gaps = []
    for rows in torch.arange(len(mask), device=mask.device).split(minibatch_size):
        part = drawn.rows(rows)
        again = score_tokens(
            model, encode(model, part.prompts).rows(part.owner), part.responses, part.mask,
            temperature,
        ).logprobs  # fmt: skip
        gaps.append((again - scored[rows, : again.shape[1]]).abs().max())
    return StepZero(
        kl=float(per_sequence(k1(scored, drawn.ref_logprobs), mask).mean()),
        log_ratio=float(torch.stack(gaps).max()),
        mask_errors=count_mask_errors(drawn.responses, mask, settings.eos_id),
        sampler_gap=float((drawn.logprobs - scored).abs().max()),
    )


def fingerprint(model: Any, reference: Any) -> str:
    """Give a hash of the weights that the reference consists of, to know it again by.

    Args:
        model: The policy; of it the frozen weights count.
        reference: A model of its own for the reference, or None.
    """
    digest = hashlib.sha256()
    for name, weights in (model if reference is None else reference).named_parameters():
        if not weights.requires_grad:
            digest.update(name.encode())
            digest.update(full(weights).detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


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
        f"sampler and scorer differ by {figures.sampler_gap:.3g} > {tolerance.sampler_gap:g} nats: "
        "tokens are drawn from one distribution and scored under another": (
            not figures.sampler_gap <= tolerance.sampler_gap
        ),
    }
    if failed := [cause for cause, off in causes.items() if off]:
        raise GateError(
            "PPO stopped before its first update.\n- " + "\n- ".join(failed) + f"\n{figures}"
        )

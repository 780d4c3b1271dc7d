"""What a strategy makes of a method's memory on each device: copied, or sharded and gathered."""

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from lightning_modules.strategies import find_strategy_problem, recognise
from lightning_modules.zero_engine import LIVE
from lightning_modules.zero_weights import AT_ONCE
from planning.parts import BUFFERS, GRADIENTS, OPTIMIZER, WEIGHTS

Name = Literal["single", "ddp", "zero2", "fsdp", "zero3"]

LABELS: dict[Name, str] = {
    "single": "single device", "ddp": "DDP", "zero2": "ZeRO-2", "fsdp": "FSDP2", "zero3": "ZeRO-3",
}  # fmt: skip

OURS: dict[str | None, Name] = {"fsdp2": "fsdp", "zero2": "zero2", "zero3": "zero3"}
"""Those that divide something, by the names that Lightning has for them."""

ON_WHOLE_WEIGHTS = ("evaluation", "rollout, sampling", "rollout, scoring")
"""How the names of those phases begin for which sharded weights are gathered as a whole."""


class Size(NamedTuple):
    """What a strategy needs to know of a model; all in bytes of fp32 but the first.

    trainable: trained parameters. root: weights outside of the blocks (embeddings, output head).
    block: weights of the largest block. root_gradients, block_gradients: the trained part of them.
    """

    trainable: int
    root: int
    block: int
    root_gradients: int
    block_gradients: int


def find_strategy(text: str, devices: int) -> Name:
    """Recognise Lightning's name (or class path) of a strategy.

    Args:
        text: Such as ``auto``, ``ddp_find_unused_parameters_true``, ``fsdp2`` or
            ``lightning_modules.strategies.FullyShardedStrategy``.
        devices: Number of devices; ``auto`` is DDP on several.

    Raises:
        ValueError: If training refuses it.
    """
    if problem := find_strategy_problem(text):
        raise ValueError(problem)
    copies: Name = "ddp" if devices > 1 else "single"
    return OURS.get(recognise(text), copies)


def place_on_devices(
    parts: Mapping[str, int], size: Size, strategy: Name, devices: int, phase: str
) -> dict[str, int]:
    """Turn the parts of a phase on a single device into those on one of several.

    The batch is one device's already, so activations stay as they are. Judges count whole: the
    toxicity classifier is, and a sharded reward model is while it scores.

    - DDP: an additional copy of the gradients, in its buckets (Li et al. 2020, "PyTorch
      Distributed", section 4.2), unless ``gradient_as_bucket_view`` is set.
    - FSDP2 (Zhao et al. 2023): weights, gradients and optimizer state are divided, as in ZeRO's
      stage 3 (Rajbhandari et al. 2020, section 5). In training the root is whole for all of a
      pass, and two blocks are at a time, the one that computes and the next; so are the gradients
      of root and block before they are summed. Evaluation and rollouts gather all weights, in a
      buffer of the largest unit, beside each device's share.
    - ZeRO-2 (Rajbhandari et al. 2020): gradients and optimizer state are divided, and each device
      has a copy of its share of the trained weights. Gradients travel in two buckets, and another
      share of them is there while they are added up, or flattened for the step.
    - ZeRO-3: all is divided; as many weights are whole as DeepSpeed lets live at once, and
      gradients travel in a bucket and a copy of it. Evaluation and rollouts gather all weights, a
      bucket at a time. A run that trains nothing divides nothing.

    Args:
        parts: Bytes by part.
        size: The model's size.
        strategy: The strategy.
        devices: Number of devices.
        phase: Name of the phase.
    """
    found = dict(parts)
    evaluates = phase.startswith(ON_WHOLE_WEIGHTS)
    if strategy == "ddp":
        found[BUFFERS] = 4 * size.trainable if found[OPTIMIZER] else 0
    elif strategy == "fsdp":
        _divide(found, (WEIGHTS, GRADIENTS, OPTIMIZER), devices)
        _gather(found, parts, size, evaluates)
    elif strategy == "zero2" and found[OPTIMIZER]:
        _divide(found, (GRADIENTS, OPTIMIZER), devices)
        _copy_share(found, size, devices)
        found[BUFFERS] = 0 if evaluates else 2 * _bucket(size) + found[GRADIENTS]
    elif strategy == "zero3" and found[OPTIMIZER]:
        _divide(found, (WEIGHTS, GRADIENTS, OPTIMIZER), devices)
        _copy_share(found, size, devices)
        _gather_layers(found, parts, size, evaluates)
    return found


def _divide(found: dict[str, int], parts: Iterable[str], devices: int) -> None:
    for part in parts:
        found[part] //= devices


def _gather(found: dict[str, int], alone: Mapping[str, int], size: Size, evaluates: bool) -> None:
    """Add the weights that FSDP2 has whole, and the gradients that are."""
    if evaluates:
        found[WEIGHTS] += alone[WEIGHTS]
        found[BUFFERS] = max(size.root, size.block)
    else:
        gradients = size.root_gradients + size.block_gradients
        found[BUFFERS] = size.root + 2 * size.block + gradients


def _gather_layers(
    found: dict[str, int], alone: Mapping[str, int], size: Size, evaluates: bool
) -> None:
    """Add the weights that ZeRO-3 has whole, and the gradients that travel."""
    found[BUFFERS] = _bucket(size)
    if evaluates:
        found[WEIGHTS] += alone[WEIGHTS]
        found[BUFFERS] += min(alone[WEIGHTS], max(size.root, 4 * AT_ONCE))
    else:
        found[BUFFERS] += _bucket(size)
        found[BUFFERS] += min(alone[WEIGHTS], max(size.root, 4 * LIVE))


def _copy_share(found: dict[str, int], size: Size, devices: int) -> None:
    """Add DeepSpeed's copy of this device's share of the trained weights, which it updates."""
    found[OPTIMIZER] += 4 * size.trainable // devices


def _bucket(size: Size) -> int:
    """Give the bytes of the gradients that travel together."""
    return 4 * min(AT_ONCE, size.trainable)

"""What a strategy makes of a method's memory on each device: copied, or sharded and gathered."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from lightning_modules.strategies import divides, find_strategy_problem
from planning.parts import BUFFERS, GRADIENTS, OPTIMIZER, WEIGHTS

Name = Literal["single", "ddp", "fsdp"]

LABELS: dict[Name, str] = {"single": "single device", "ddp": "DDP", "fsdp": "FSDP2"}

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
    if divides(text):
        return "fsdp"
    return "ddp" if devices > 1 else "single"


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

    Args:
        parts: Bytes by part.
        size: The model's size.
        strategy: The strategy.
        devices: Number of devices.
        phase: Name of the phase.
    """
    found = dict(parts)
    trains = found[OPTIMIZER] > 0
    if strategy == "ddp":
        found[BUFFERS] = 4 * size.trainable if trains else 0
    if strategy == "fsdp":
        for part in (WEIGHTS, GRADIENTS, OPTIMIZER):
            found[part] //= devices
        if phase.startswith(ON_WHOLE_WEIGHTS):
            found[WEIGHTS] += parts[WEIGHTS]
            found[BUFFERS] = max(size.root, size.block)
        else:
            gradients = size.root_gradients + size.block_gradients
            found[BUFFERS] = size.root + 2 * size.block + gradients
    return found

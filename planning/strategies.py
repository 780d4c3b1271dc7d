"""What a strategy makes of a method's memory on each device: copied, or sharded and gathered."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from planning.parts import BUFFERS, GRADIENTS, OPTIMIZER, WEIGHTS

Name = Literal["single", "ddp", "fsdp"]

LABELS: dict[Name, str] = {"single": "single device", "ddp": "DDP", "fsdp": "FSDP"}


class Size(NamedTuple):
    """What a strategy needs to know of a model.

    trainable: trained parameters. largest_layer: bytes of its largest repeated layer, or of its
    embedding where that is larger, in fp32.
    """

    trainable: int
    largest_layer: int


def find_strategy(text: str, devices: int) -> Name:
    """Recognise Lightning's name (or class path) of a strategy.

    Args:
        text: Such as ``auto``, ``ddp_find_unused_parameters_true``, ``fsdp`` or
            ``lightning.pytorch.strategies.FSDPStrategy``.
        devices: Number of devices; ``auto`` is DDP on several.

    Raises:
        ValueError: If training refuses it.
    """
    text = text.lower()
    if "deepspeed" in text:
        raise ValueError(
            "trainer.strategy: DeepSpeed accumulates gradients itself, which training here refuses "
            "(see SteppingModule.setup); plan for ddp or fsdp"
        )
    if "fsdp" in text:
        return "fsdp"
    return "ddp" if devices > 1 else "single"


def place_on_devices(
    parts: Mapping[str, int], size: Size, strategy: Name, devices: int, bf16: bool
) -> dict[str, int]:
    """Turn the parts of a phase on a single device into those on one of several.

    The batch is one device's already, so activations stay as they are. Judges are not sharded.

    - DDP: an additional copy of the gradients, in its buckets (Li et al. 2020, "PyTorch
      Distributed", section 4.2), unless ``gradient_as_bucket_view`` is set.
    - FSDP (Zhao et al. 2023): weights, gradients and optimizer state are divided, as in ZeRO's
      stage 3 (Rajbhandari et al. 2020, section 5); two layers are whole at a time, the one that
      computes and the next, and the gradients of one before they are summed.

    Args:
        parts: Bytes by part.
        size: The model's size.
        strategy: The strategy.
        devices: Number of devices.
        bf16: Whether layers are gathered in bf16.
    """
    found = dict(parts)
    trains = found[OPTIMIZER] > 0
    if strategy == "ddp":
        found[BUFFERS] = 4 * size.trainable if trains else 0
    if strategy == "fsdp":
        for part in (WEIGHTS, GRADIENTS, OPTIMIZER):
            found[part] //= devices
        layer = size.largest_layer // (2 if bf16 else 1)
        found[BUFFERS] = (3 if trains else 2) * layer
    return found

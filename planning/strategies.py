"""What a strategy makes of a method's memory on each device: sharded, copied, gathered."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from planning.parts import BUFFERS, COPIES, GRADIENTS, OPTIMIZER, WEIGHTS

Name = Literal["single", "ddp", "fsdp", "zero2", "zero3"]

LABELS: dict[Name, str] = {
    "single": "single device", "ddp": "DDP", "fsdp": "FSDP", "zero2": "ZeRO-2", "zero3": "ZeRO-3",
}  # fmt: skip

SHARED: tuple[Name, ...] = ("ddp", "fsdp", "zero2", "zero3")
"""The strategies for several devices."""

DEEPSPEED_BUCKET = 200_000_000
"""Elements of one communication bucket, as Lightning's DeepSpeedStrategy sets it."""


@dataclass(frozen=True)
class Model:
    """What a strategy needs to know of a model.

    Args:
        trainable: Number of trained parameters.
        total: Number of parameters.
        largest_layer: Bytes of its largest repeated layer, or of its embedding, in fp32.
    """

    trainable: int
    total: int
    largest_layer: int


def find_strategy(text: str, devices: int) -> Name:
    """Recognise Lightning's name (or class path) of a strategy.

    Args:
        text: Such as ``auto``, ``ddp_find_unused_parameters_true``, ``fsdp``,
            ``deepspeed_stage_3_offload`` or ``lightning.pytorch.strategies.FSDPStrategy``.
        devices: Number of devices; ``auto`` is DDP on several.
    """
    text = text.lower()
    if "fsdp" in text or "modelparallel" in text:
        return "fsdp"
    if "deepspeed" in text:
        return "zero3" if "3" in text else "zero2"
    return "ddp" if devices > 1 else "single"


def place_on_devices(
    parts: Mapping[str, int], model: Model, strategy: Name, devices: int, bf16: bool
) -> dict[str, int]:
    """Turn the parts of a phase on a single device into those on one of several.

    The batch is one device's already, so activations stay as they are. Judges are not sharded.

    - DDP: an additional copy of the gradients, in its buckets (Li et al. 2020, "PyTorch
      Distributed", section 4.2), unless ``gradient_as_bucket_view`` is set.
    - ZeRO (Rajbhandari et al. 2020, section 5 and figure 1): stage 2 divides gradients and
      optimizer state among the devices, stage 3 the weights too. DeepSpeed's bf16 keeps weights
      and gradients in bf16 and an fp32 copy of the trained weights in its optimizer state:
      2 + (2 + 4 + 8) / N bytes a trained parameter for Adam.
    - FSDP (Zhao et al. 2023): divides as stage 3, in fp32; two layers are whole at a time, the one
      that computes and the next, and the gradients of one before they are summed.

    Args:
        parts: Bytes by part.
        model: The model's size.
        strategy: The strategy.
        devices: Number of devices N.
        bf16: Whether the precision is ``bf16-mixed``.
    """
    found = dict(parts)
    if strategy == "single":
        return found
    trains = found[OPTIMIZER] > 0 or found[GRADIENTS] > 0
    size = 2 if bf16 else 4
    if strategy == "ddp":
        found[BUFFERS] = 4 * model.trainable if trains else 0
        return found
    found[GRADIENTS] //= devices
    found[OPTIMIZER] //= devices
    if strategy in ("zero2", "zero3"):
        if bf16:
            found[COPIES] = 0  # the weights are bf16 as they are
            found[WEIGHTS] //= 2
            found[GRADIENTS] //= 2
            found[OPTIMIZER] += 4 * model.trainable // devices if trains else 0
        buckets = 2 * min(model.trainable, DEEPSPEED_BUCKET) * size
        found[BUFFERS] = buckets if trains else 0
    if strategy in ("fsdp", "zero3"):
        found[WEIGHTS] //= devices
        layer = model.largest_layer // 4 * size
        found[BUFFERS] = found.get(BUFFERS, 0) + 2 * layer + (layer if trains else 0)
    return found

"""What a plan speaks of: what memory goes to, how large batches are, how numbers are computed."""

from dataclasses import dataclass, replace

from datamodules.batching import MULTIPLE

WEIGHTS = "weights"
JUDGES = "reward and toxicity models"
GRADIENTS = "gradients"
OPTIMIZER = "optimizer state"
COPIES = "bf16 copies of weights"
LOGITS = "logits"
ATTENTION = "attention weights"
OTHER = "other activations"
CACHE = "KV cache"
BUFFERS = "communication buffers"
HEAP = "free blocks of the heap"
PROCESS = "Python and libraries"

TENSORS = (WEIGHTS, JUDGES, GRADIENTS, OPTIMIZER, COPIES, LOGITS, ATTENTION, OTHER, CACHE)
"""The parts that are tensors of the computation."""

PARTS = (*TENSORS, BUFFERS, HEAP, PROCESS)
"""All of them, in the order in which they are shown."""


@dataclass(frozen=True)
class Lengths:
    """The largest batches of a run, on one device.

    Args:
        batch_size: Rows of a training batch.
        eval_batch_size: Rows of an evaluation batch.
        source: Tokens of a prompt.
        target: Tokens of a label.
    """

    batch_size: int
    eval_batch_size: int
    source: int
    target: int

    def padded(self) -> "Lengths":
        """Give the lengths that a collator makes of these, multiples of 8."""
        source, target = (-(-n // MULTIPLE) * MULTIPLE for n in (self.source, self.target))
        return replace(self, source=source, target=target)


@dataclass(frozen=True)
class Computation:
    """How the numbers are computed.

    Args:
        bf16: Under bf16 autocast; the weights stay fp32.
        gpu: With a GPU's kernels and its way of running the optimizer.
        clip: Whether gradients are clipped by their norm.
    """

    bf16: bool = False
    gpu: bool = False
    clip: bool = False

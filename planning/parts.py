"""What a plan speaks of: what memory goes to, how large batches are, how numbers are computed."""

from dataclasses import dataclass

WEIGHTS = "weights"
JUDGES = "reward, toxicity models"
GRADIENTS = "gradients"
OPTIMIZER = "optimizer state"
COPIES = "copies of weights"
LOGITS = "logits"
ATTENTION = "attention weights"
OTHER = "other activations"
CACHE = "KV cache"
BUFFERS = "communication buffers"
HEAP = "free blocks of the heap"
PROCESS = "Python and libraries"

PARTS = (
    WEIGHTS, JUDGES, GRADIENTS, OPTIMIZER, COPIES, LOGITS, ATTENTION, OTHER, CACHE, BUFFERS, HEAP,
    PROCESS,
)  # fmt: skip
"""All of them, in the order in which they are shown."""

LASTING = (WEIGHTS, JUDGES, GRADIENTS, OPTIMIZER)
"""Those that stay from step to step."""


@dataclass(frozen=True)
class Lengths:
    """The largest batches of a run, on one device, padding included.

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


@dataclass(frozen=True)
class Computation:
    """How the numbers are computed.

    Args:
        bf16: Under bf16 autocast; the weights stay fp32.
        gpu: By a GPU's kernels.
    """

    bf16: bool = False
    gpu: bool = False

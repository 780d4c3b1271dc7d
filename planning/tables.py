"""Plans as tables for a terminal, with advice on the largest item."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from planning.memory import HEAP_SHARE, Plan
from planning.parts import (
    ATTENTION,
    BUFFERS,
    CACHE,
    COPIES,
    GRADIENTS,
    HEAP,
    JUDGES,
    LOGITS,
    OPTIMIZER,
    OTHER,
    PARTS,
    PROCESS,
    WEIGHTS,
)
from planning.strategies import LABELS

GIB = 2**30

RULE = {"weights": 4.0, "Adam": 8.0, "gradients": 4.0, "activations and temporaries": 8.0}
"""The rule of thumb that the original gives: bytes a parameter, in fp32."""

RULE_WEIGHTS = {"16-bit": 2.0, "int8": 1.0, "int4": 0.5}
"""The same for the weights alone in fewer bits."""


def make_parts_table(plans: Sequence[Plan], own: str) -> Table:
    """Lay out what memory goes to, a column a method; the run's own method is bold."""
    first = plans[0]
    table = _make_table(f"Memory at the peak, in GiB {_where(first)}", _caption(first), plans, own)
    table.add_row("parameters", *(f"{plan.traced.total:,}" for plan in plans))
    table.add_row("of them trained", *(f"{plan.traced.size.trainable:,}" for plan in plans))
    table.add_section()
    for part in PARTS:
        if any(plan.parts[part] for plan in plans) or part in (WEIGHTS, GRADIENTS, OPTIMIZER):
            table.add_row(part, *(_gib(plan.parts[part]) for plan in plans))
    table.add_section()
    table.add_row("total", *(_gib(plan.total) for plan in plans), style="bold")
    table.add_row("which is in", *(plan.peak for plan in plans))
    return table


def make_phases_table(plans: Sequence[Plan], own: str) -> Table:
    """Lay out the peak of each phase; for generation, the key-value cache in it too."""
    table = _make_table("Peak of each phase, in GiB", None, plans, own)
    names = list(dict.fromkeys(name for plan in plans for name in plan.phases))
    for name in names:
        found = [plan.phases.get(name) for plan in plans]
        table.add_row(name, *(_gib(sum(one.values())) if one else "-" for one in found))
        caches = [one[CACHE] if one else 0 for one in found]
        if any(caches):
            table.add_row("  of it KV cache", *(_gib(size) if size else "-" for size in caches))
    return table


def make_settings_table(grid: Sequence[Sequence[Plan]], own: str, current: Plan) -> Table:
    """Lay out the totals in every precision and strategy, a row a setting."""
    table = _make_table(
        "Total for each device in other settings, in GiB",
        "The batch is that of one device; more of them make the step's batch larger.",
        grid[0],
        own,
    )
    for row in grid:
        setting = row[0].setting
        here = setting == current.setting
        label = f"{precision(setting.computation.bf16)}, {LABELS[setting.strategy]}"
        if setting.devices > 1:
            label += f" x {setting.devices}"
        table.add_row(
            f"{label} *" if here else label,
            *(_gib(plan.total) for plan in row),
            end_section=setting.strategy == tuple(LABELS)[-1],
        )
    return table


def make_rule_table(parameters: int) -> Table:
    """Lay out the rule of thumb of bytes a parameter, for a number of parameters."""
    table = _make_table(
        f"Rule of thumb for {parameters:,} parameters",
        "It knows no batch: activations grow with batch x length, not with parameters. It gives "
        "frozen weights gradients and Adam's numbers, which LoRA and soft prompts do not have; and "
        "bf16-mixed halves none of the first three. See docs/memory.md.",
    )
    table.add_column("bytes a parameter", justify="right")
    table.add_column("GiB", justify="right")
    for name, size in RULE.items():
        table.add_row(name, f"{size:g}", _gib(size * parameters))
    total = sum(RULE.values())
    table.add_row("training", f"{total:g}", _gib(total * parameters), style="bold")
    table.add_section()
    for name, size in RULE_WEIGHTS.items():
        table.add_row(f"weights in {name}", f"{size:g}", _gib(size * parameters))
    return table


def give_advice(plan: Plan, vocabulary: int) -> str:
    """Say in a line what the largest item is, and what makes it smaller."""
    parts = {part: size for part, size in plan.parts.items() if part != PROCESS}
    largest = max(parts, key=lambda part: parts[part])
    shorter = _find_remedy(plan)
    texts = {
        WEIGHTS: "the weights, which every method needs: a smaller backbone, or, where it is not "
        "for an evaluation or rollouts, FSDP2 (--config configs/overlays/fsdp.yaml)",
        JUDGES: "the frozen classifiers: smaller ones",
        GRADIENTS: "the gradients: train fewer weights (LoRA, a soft prompt), or FSDP2",
        OPTIMIZER: "the optimizer's state: train fewer weights (LoRA, a soft prompt), an optimizer "
        "that keeps less (Adafactor), or FSDP2",
        COPIES: "copies of the weights: --trainer.precision 32-true has none in bf16, but larger "
        "activations",
        LOGITS: f"the logits of {vocabulary:,} tokens: {shorter}",
        ATTENTION: f"the attention weights, {plan.lengths.source} tokens squared: {shorter}",
        OTHER: f"the activations: {shorter}",
        CACHE: f"the keys and values of generation: {shorter}",
        BUFFERS: "communication buffers: DDP's gradient_as_bucket_view saves a copy of the "
        "gradients",
        HEAP: "free blocks of the heap, which smaller batches leave fewer of",
    }
    return f"{plan.method}: {parts[largest] / GIB:.2f} GiB go to {texts[largest]}."


def _find_remedy(plan: Plan) -> str:
    """Name the settings that make what passes with a batch smaller, in the phase of the peak."""
    if plan.peak.startswith("evaluation"):
        return "a smaller --data.eval_batch_size, or fewer beams"
    if plan.peak.startswith("rollout"):
        return "a smaller --data.batch_size, or --model.ppo.max_new_tokens"
    if plan.method == "PPO":
        return "a smaller --model.ppo.microbatch_size, or --data.max_source_length"
    return (
        "a smaller --data.batch_size with more --trainer.accumulate_grad_batches, a smaller "
        "--data.max_source_length, or --model.gradient_checkpointing true"
    )


def precision(bf16: bool) -> str:
    """Give Lightning's name of a precision."""
    return "bf16-mixed" if bf16 else "32-true"


def _make_table(
    title: str, caption: str | None, plans: Sequence[Plan] = (), own: str = ""
) -> Table:
    """Make a table with a column of names and one for each method; the run's own is bold."""
    table = Table(
        title=title, title_justify="left", caption=caption, caption_justify="left",
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False,
    )  # fmt: skip
    table.add_column("", no_wrap=True)
    for plan in plans:
        mine = plan.method == own
        name, style = (f"{plan.method} *", "bold") if mine else (plan.method, "")
        table.add_column(name, justify="right", style=style, overflow="fold")
    return table


def _where(plan: Plan) -> str:
    setting, lengths = plan.setting, plan.lengths
    device = "GPU" if setting.computation.gpu else "CPU"
    target = f" -> {lengths.target}" if lengths.target else ""
    kind = precision(setting.computation.bf16)
    return (
        f"({kind}, {setting.devices} x {device}, {LABELS[setting.strategy]}, batch of "
        f"{lengths.batch_size} x {lengths.source}{target} tokens)"
    )


def _caption(plan: Plan) -> str:
    if plan.setting.computation.gpu:
        return (
            "What tensors take. The GPU's context takes some 0.5 GiB more, and torch keeps freed "
            "blocks; leave 10 %."
        )
    return (
        f"The process as a whole. {HEAP.capitalize()}: glibc keeps some {HEAP_SHARE:.0%} of "
        f"the activations, as measured. {PROCESS}: this process now."
    )


def _gib(size: float) -> str:
    """Give GiB with two decimals; with three where two would say little."""
    amount = size / GIB
    return f"{amount:.3f}" if 0.0005 <= amount < 0.1 else f"{amount:.2f}"

"""Predict the peak memory of a run from its configuration, without loading weights or data.

    python -m alignsum plan --config configs/lora.yaml
    python -m alignsum plan --config configs/ppo.yaml --model.ppo.minibatch_size 2

Every option of ``train.py fit`` is accepted. The model is built on torch's meta device, where
tensors have shapes and no memory, and takes one training step there; the tensors that autograd
saves in it are the activations. The longest prompts, targets and responses that the configuration
allows are assumed. On a CPU the process itself counts too, as in the peak that a run reports.
"""

import contextlib
import io
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.exits import AlignsumError, quieten_models, run, start_log

log = logging.getLogger("plan")

FP32, BF16 = 4, 2

PROCESS = 670 * 2**20
"""Bytes of Python, its libraries and the data in a run on a CPU, as measured on Linux."""


@dataclass(frozen=True)
class Item:
    """Memory that one thing takes, in bytes, and the phase that needs it (None: all)."""

    what: str
    size: float
    phase: str | None = None


@dataclass(frozen=True)
class Shapes:
    """Numbers of rows and of tokens.

    rows, source and target are those of a forward and backward pass; sampled rows and new_tokens
    those of a rollout (PPO) or of generation in evaluation; eval_rows of its teacher forcing.
    """

    rows: int
    source: int
    target: int
    eval_rows: int
    eval_target: int
    sampled: int
    new_tokens: int


def main(args: Sequence[str]) -> int:
    """Run the command line; returns its exit code."""
    if not args or args[0] in ("-h", "--help"):
        sys.stdout.write(f"usage: alignsum plan [OPTIONS OF train.py fit]\n\n{__doc__}")
        return 0
    start_log()

    def work() -> None:
        quieten_models()
        from rich.console import Console

        items = make_plan(read_config(args))
        Console().print(make_table(items))

    return run(work, log)


def read_config(args: Sequence[str]) -> dict[str, Any]:
    """Resolve a command line of ``train.py fit`` into one configuration."""
    import yaml

    from alignsum.cli import AlignsumCLI
    from alignsum.overlays import expand_short_options, prepare_configs

    arguments, text = ["fit", *expand_short_options(args), "--print_config"], io.StringIO()
    try:
        with contextlib.redirect_stdout(text):
            AlignsumCLI(arguments, prepare_configs(arguments))
    except SystemExit:
        pass  # after it has printed
    config: dict[str, Any] = yaml.safe_load(text.getvalue())
    return config


def make_plan(config: dict[str, Any]) -> list[Item]:
    """List what takes memory in a run.

    Raises:
        AlignsumError: If there is no plan for the method.
    """
    name = config["model"]["class_path"].rpartition(".")[2]
    if name not in ("FullFT", "LoRA", "SoftPrompt", "PPOPolicy"):
        raise AlignsumError(
            f"plan: {name} has no plan; only FullFT, LoRA, SoftPrompt and PPOPolicy"
        )
    settings, trainer = config["model"]["init_args"], config["trainer"]
    shapes = read_shapes(name, config)
    model = build_model(name, settings)
    bf16 = "bf16" in str(trainer["precision"])
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    weights = sum(p.numel() for p in model.parameters())
    items = [
        Item("weights", FP32 * weights),
        Item("optimizer state", count_moments(settings) * FP32 * trained),
        Item("gradients", FP32 * trained, "optimizer step"),
    ]
    if runs_on_cpu(trainer["accelerator"]):
        items.insert(0, Item("Python, libraries, data", PROCESS))
    if bf16:
        items.append(Item("bf16 copies of weights", BF16 * weights, "training step"))
    if name == "SoftPrompt":
        shapes = Shapes(**{**vars(shapes), "source": shapes.source + settings["virtual_tokens"]})
    items += plan_training(model, shapes, bf16, name == "PPOPolicy")
    items += plan_generation(model, shapes)
    if name == "PPOPolicy":
        items += plan_rewards(settings, shapes)
    return items


def runs_on_cpu(accelerator: str) -> bool:
    """Return whether a Trainer with this accelerator computes on the CPU."""
    import torch

    is_auto = accelerator == "auto" and not torch.accelerator.is_available()
    return accelerator == "cpu" or is_auto


def read_shapes(name: str, config: dict[str, Any]) -> Shapes:
    """Read the numbers of rows and tokens from a configuration."""
    data, settings = config["data"]["init_args"], config["model"]["init_args"]
    rows, source = data["batch_size"], data["max_source_length"]
    eval_rows = data["eval_batch_size"] or rows
    decoding = (settings.get("decoding") or {}).get("max_new_tokens", 128)
    target, sampled, new_tokens = data["max_target_length"], eval_rows, decoding
    if name == "PPOPolicy":
        ppo = settings["ppo"]
        sampled, new_tokens = rows * ppo["samples"], ppo["max_new_tokens"]
        rows = min(ppo.get("microbatch_size") or ppo["minibatch_size"], sampled)
        target = new_tokens
    return Shapes(rows, source, target, eval_rows, data["max_target_length"], sampled, new_tokens)


def build_model(name: str, settings: dict[str, Any]) -> Any:
    """Build the backbone and its adapter on the meta device; freeze what is not trained."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    from common.hub import resolve_model

    path = resolve_model(settings["backbone"])
    backbone = AutoConfig.from_pretrained(path)
    with torch.device("meta"):
        model = AutoModelForSeq2SeqLM.from_config(backbone)
        if has_own_head(path, backbone):
            head = model.get_output_embeddings()
            head.weight = torch.nn.Parameter(torch.empty_like(head.weight))
        lora = settings.get("policy", {"init_args": settings})
        if name != "FullFT" and (rank := (lora.get("init_args") or {}).get("r")):
            targets = lora["init_args"].get("target_modules")
            model = get_peft_model(
                model,
                LoraConfig(task_type="SEQ_2_SEQ_LM", r=rank, target_modules=targets),
            )
    if name == "SoftPrompt":
        model.requires_grad_(False)
        # Its gradient passes through the whole frozen model.
        model.soft_prompt = torch.nn.Parameter(
            torch.empty(settings["virtual_tokens"], backbone.d_model, device="meta")
        )
        model.enable_input_require_grads()
    if settings.get("gradient_checkpointing"):
        model.gradient_checkpointing_enable()
        if name != "FullFT":
            model.enable_input_require_grads()
    return model


def has_own_head(path: str, backbone: Any) -> bool:
    """Return whether the output head shares no weights with the embedding, as in FLAN-T5.

    A local weights file decides, since the configurations of T5 can be wrong about it.
    """
    from safetensors import safe_open

    file = Path(path) / "model.safetensors"
    if not file.is_file():
        return not backbone.tie_word_embeddings
    with safe_open(file, "pt") as weights:
        return any(name.endswith("lm_head.weight") for name in weights.keys())  # noqa: SIM118


def count_moments(settings: dict[str, Any]) -> int:
    """Return how many numbers an optimizer keeps for each trained weight."""
    optimizer = (settings.get("optimizer") or {"class_path": "torch.optim.AdamW"})["class_path"]
    return {"SGD": 0, "Adafactor": 0, "Adam": 2, "AdamW": 2}.get(optimizer.rpartition(".")[2], 2)


def plan_training(model: Any, shapes: Shapes, bf16: bool, is_ppo: bool) -> list[Item]:
    """Plan a forward and backward pass over one (micro-)batch."""
    import torch

    if bf16:
        model = model.to(torch.bfloat16)
    if is_ppo:
        model.eval()  # PPO trains without dropout
    saved = count_saved(model, shapes.rows, shapes.source, shapes.target)
    logits = FP32 * shapes.rows * shapes.target * model.config.vocab_size
    return [
        Item("activations saved for the backward pass", saved - logits, "training step"),
        # In fp32: the logits, their log-softmax, and the gradient of one of them.
        Item("logits and their gradient", 3 * logits, "training step"),
    ]


def count_saved(model: Any, rows: int, source: int, target: int) -> int:
    """Count the bytes that autograd saves in one forward pass with a cross-entropy loss.

    Tensors that share memory count once, and weights not at all.
    """
    import torch

    kept: dict[int, Any] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in weights:
            kept[id(storage)] = storage  # kept alive, so that its id is not reused
        return tensor

    ids = torch.zeros(rows, source, dtype=torch.long, device="meta")
    labels = torch.zeros(rows, target, dtype=torch.long, device="meta")
    storages = [p.untyped_storage() for p in model.parameters()]
    weights = {id(storage) for storage in storages}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = model(
            input_ids=ids,
            decoder_input_ids=labels,
            use_cache=False,
        ).logits
        torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
    return sum(storage.nbytes() for storage in kept.values())


def plan_generation(model: Any, shapes: Shapes) -> list[Item]:
    """Plan a rollout, or generation in evaluation: the caches of keys and values."""
    config = model.config
    width = getattr(config, "num_heads", 1) * getattr(config, "d_kv", config.d_model)
    layers = getattr(config, "num_decoder_layers", None) or config.decoder_layers
    tokens = shapes.source + shapes.new_tokens
    cache = 2 * FP32 * layers * shapes.sampled * tokens * width
    states = FP32 * shapes.sampled * shapes.source * config.d_model
    heads = getattr(config, "num_heads", None) or config.encoder_attention_heads
    scores = 2 * FP32 * shapes.sampled * heads * shapes.source**2
    logits = 3 * FP32 * shapes.eval_rows * shapes.eval_target * config.vocab_size
    return [
        Item("keys and values of the decoder", cache, "generation"),
        Item("encoder states", 4 * states, "generation"),
        Item("encoder's attention of one layer", scores, "encoding"),
        Item("encoder's hidden states of one layer", 8 * states, "encoding"),
        Item("logits of a validation batch", logits, "validation loss"),
    ]


def plan_rewards(settings: dict[str, Any], shapes: Shapes) -> list[Item]:
    """Plan what only PPO has: the reward model and the scores of whole rollouts."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from common.hub import resolve_model

    items = []
    if settings.get("reward_model"):
        path = resolve_model(settings["reward_model"], "classifier")
        with torch.device("meta"):
            judge = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(path))
        items.append(Item("reward model", FP32 * sum(p.numel() for p in judge.parameters())))
    vocabulary = AutoConfig.from_pretrained(resolve_model(settings["backbone"])).vocab_size
    rows = min(shapes.rows, shapes.sampled)
    logits = 3 * FP32 * rows * shapes.new_tokens * vocabulary
    return [*items, Item("logits of policy and reference", logits, "scoring of rollouts")]


def find_peak(items: Sequence[Item]) -> tuple[str, float]:
    """Return the phase that needs most, and its bytes including what all phases need."""
    base = sum(item.size for item in items if item.phase is None)
    phases = {item.phase for item in items if item.phase is not None}
    sizes = {p: base + sum(item.size for item in items if item.phase == p) for p in phases}
    phase = max(sizes, key=lambda name: sizes[name])
    return phase, sizes[phase]


def make_table(items: Sequence[Item]) -> Any:
    """Lay out a plan for the terminal."""
    from rich.table import Table

    phase, peak = find_peak(items)
    table = Table("what", "when", "MiB", title=f"Peak {peak / 2**20:,.0f} MiB, in the {phase}")
    for item in items:
        table.add_row(item.what, item.phase or "always", f"{item.size / 2**20:,.1f}")
    return table

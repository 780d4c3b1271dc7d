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
    from alignsum.option_check import prepare
    from alignsum.overlays import expand_short_options

    arguments, text = ["fit", *expand_short_options(args), "--print_config"], io.StringIO()
    try:
        with contextlib.redirect_stdout(text):
            AlignsumCLI(arguments, prepare(arguments))
    except SystemExit:
        pass  # after it has printed
    config: dict[str, Any] = yaml.safe_load(text.getvalue())
    return config


def make_plan(config: dict[str, Any]) -> list[Item]:
    """List what takes memory in a run.

    Raises:
        AlignsumError: If there is no plan for the method.
    """
    import torch

    name = config["model"]["class_path"].rpartition(".")[2]
    if name not in ("FullFT", "LoRA", "SoftPrompt", "PPOPolicy"):
        raise AlignsumError(
            f"plan: {name} has no plan; only FullFT, LoRA, SoftPrompt and PPOPolicy"
        )
    settings, data, trainer = (
        config["model"]["init_args"],
        config["data"]["init_args"],
        config["trainer"],
    )
    model = build_model(name, settings)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    weights = sum(p.numel() for p in model.parameters())
    optimizer = (settings.get("optimizer") or {"class_path": "torch.optim.AdamW"})["class_path"]
    moments = 2 if "Adam" in optimizer else 0

    rows, source, target = data["batch_size"], data["max_source_length"], data["max_target_length"]
    source += settings.get("virtual_tokens") or 0
    sampled = eval_rows = data["eval_batch_size"] or rows
    new_tokens = (settings.get("decoding") or {}).get("max_new_tokens", 128)
    validation_logits = 3 * FP32 * eval_rows * target * model.config.vocab_size
    if name == "PPOPolicy":
        ppo = settings["ppo"]
        sampled, target = rows * ppo["samples"], ppo["max_new_tokens"]
        rows, new_tokens = min(ppo.get("microbatch_size") or ppo["minibatch_size"], sampled), target
    logits = FP32 * rows * target * model.config.vocab_size
    items = [
        Item("weights", FP32 * weights),
        Item("optimizer state", moments * FP32 * trained),
        Item("gradients", FP32 * trained, "optimizer step"),
        # In fp32: the logits, their log-softmax, and the gradient of one of them.
        Item("logits and their gradient", 3 * logits, "training step"),
        *plan_generation(model.config, sampled, source, new_tokens),
        Item("logits of a validation batch", validation_logits, "validation loss"),
    ]
    if trainer["accelerator"] == "cpu" or not torch.accelerator.is_available():
        items.append(Item("Python, libraries, data", PROCESS))
    if settings.get("reward_model"):
        items.append(Item("reward model", FP32 * count_classifier(settings["reward_model"])))
    if "bf16" in str(trainer["precision"]):
        items.append(Item("bf16 copies of weights", BF16 * weights, "training step"))
        model = model.to(torch.bfloat16)
    model.train(name != "PPOPolicy")  # PPO trains without dropout
    saved = count_saved(model, rows, source, target) - logits
    return [*items, Item("activations saved for the backward pass", saved, "training step")]


def build_model(name: str, settings: dict[str, Any]) -> Any:
    """Build the backbone and its adapter on the meta device; freeze what is not trained."""
    import torch

    from common.hub import resolve_model
    from lightning_modules.backbones import sketch_backbone
    from lightning_modules.policies.adapters import attach_adapter
    from lightning_modules.policies.lora import LoRASettings

    model: Any = sketch_backbone(settings["backbone"])
    width = model.get_input_embeddings().weight.shape[1]
    with torch.device("meta"):
        if has_own_head(resolve_model(settings["backbone"]), model.config):
            head = model.get_output_embeddings()
            head.weight = torch.nn.Parameter(torch.empty_like(head.weight))
        policy = settings.get("policy") or {"class_path": name, "init_args": settings}
        if "LoRA" in policy["class_path"]:
            given = policy.get("init_args") or {}
            lora = LoRASettings(given.get("r"), target_modules=given.get("target_modules"))
            model = attach_adapter(model, lora.config())
    if name == "SoftPrompt":
        model.requires_grad_(False)
        # Its gradient passes through the whole frozen model.
        model.soft_prompt = torch.nn.Parameter(
            torch.empty(settings["virtual_tokens"], width, device="meta")
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
        inputs: dict[str, Any]
        if model.config.is_encoder_decoder:
            inputs = {"input_ids": ids, "decoder_input_ids": labels}
        else:
            row = torch.cat([ids, labels], dim=1)
            # A mask of this shape is used as it is; making one needs values, not only shapes.
            mask = torch.ones(rows, 1, *2 * row.shape[1:], dtype=torch.bool, device="meta")
            inputs = {"input_ids": row, "attention_mask": mask, "logits_to_keep": target}
        logits = model(**inputs, use_cache=False).logits
        torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
    return sum(storage.nbytes() for storage in kept.values())


def plan_generation(config: Any, rows: int, source: int, new_tokens: int) -> list[Item]:
    """Plan a rollout, or generation in evaluation."""
    config = config.get_text_config(decoder=True)
    heads, names = config.num_attention_heads, ("num_decoder_layers", "decoder_layers")
    size = getattr(config, "d_kv", None) or getattr(config, "head_dim", None)
    width = getattr(config, "num_key_value_heads", heads) * (size or config.hidden_size // heads)
    counts = (getattr(config, name, None) for name in names)
    layers = next(filter(None, counts), config.num_hidden_layers)
    cache = 2 * FP32 * layers * rows * (source + new_tokens) * width
    states = FP32 * rows * source * config.hidden_size
    scores = 2 * FP32 * rows * heads * source**2
    items = [Item("keys and values of the decoder", cache, "generation")]
    if not config.is_encoder_decoder:
        return items
    return [
        *items,
        Item("encoder states", 4 * states, "generation"),
        Item("encoder's attention and states of one layer", scores + 8 * states, "encoding"),
    ]


def count_classifier(name: str) -> int:
    """Count the weights of a reward model."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from common.hub import resolve_model

    config = AutoConfig.from_pretrained(resolve_model(name, "classifier"))
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    return sum(p.numel() for p in model.parameters())


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

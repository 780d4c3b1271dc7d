"""Adapters on a backbone: attach a LoRA or a soft prompt, load, switch, merge and count them."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, TaskType, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hub import load_tokenizer, resolve_model
from lightning_modules.switching import (
    check_weights,
    fitting,
    load_adapters,
    merge_adapter,
    read_adapter_config,
    use_adapter,
)
from lightning_modules.targets import (
    Targets,
    find_pattern_problem,
    find_shared_problem,
    find_target_problem,
    match_targets,
)
from lightning_modules.zero_weights import shape_of

__all__ = [
    "POLICY", "REFERENCE", "LoRASettings", "attach_lora", "attach_soft_prompt",
    "attach_soft_prompt_reference", "attach_trained_lora", "continue_lora", "count_parameters",
    "encoder_is_trained", "find_adapter_problem", "find_shape_problem", "find_start_problem",
    "find_virtual_tokens",
    "load_adapters", "merge_adapter", "read_adapter_config", "reference_policy", "unwrap",
    "use_adapter",
]  # fmt: skip

POLICY = "default"
"""Name of the adapter that is trained; PEFT writes the one of this name at a folder's top."""

REFERENCE = "reference"
"""Name of the frozen adapter that a policy started from."""

Start = Literal["random", "vocabulary", "text"]
"""Where the vectors of a soft prompt start."""

COMMON_TOKENS = 5000
"""How many of a vocabulary's first tokens are common (Lester et al. 2021, section 3.2)."""


@dataclass(frozen=True)
class LoRASettings:
    """Shape of a LoRA.

    Args:
        r: Rank of the updates.
        alpha: Numerator of their scale: alpha / r, or alpha / sqrt(r) with ``use_rslora``.
        dropout: Dropout on their input.
        target_modules: The layers that get one, as PEFT takes them: ends of names (for T5 ``q``,
            ``k``, ``v``, ``o``, ``wi_0``, ``wi_1``, ``wo``), a regular expression over whole names,
            or ``all-linear``.
        use_dora: Train the length of each row of the adapted matrix by itself (DoRA).
        use_rslora: Scale by alpha / sqrt(r), which does not shrink the updates of high ranks.

    Raises:
        ValueError: If a setting is out of range.
    """

    r: int = 32
    alpha: int = 32
    dropout: float = 0.0
    target_modules: Targets = ("q", "v")
    use_dora: bool = False
    use_rslora: bool = False

    def __post_init__(self) -> None:
        problems = [find_pattern_problem(self.target_modules)]
        if self.r < 1 or self.alpha < 1 or not 0 <= self.dropout < 1:
            problems.append(
                "LoRA needs r >= 1, alpha >= 1 and dropout in [0, 1), "
                f"got r {self.r}, alpha {self.alpha}, dropout {self.dropout}"
            )
        if found := [problem for problem in problems if problem]:
            raise ValueError("; ".join(found))


def attach_lora(backbone: PreTrainedModel, settings: LoRASettings) -> PeftModel:
    """Freeze a backbone and add low-rank updates to some of its layers.

    Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685,
    equation 3: h = W x + s B A x with s = alpha / r, and B = 0 at the start, so that a fresh LoRA
    changes nothing. rsLoRA (Kalajdzievski 2023, arXiv 2312.03732) takes s = alpha / sqrt(r). DoRA
    (Liu et al. 2024, arXiv 2402.09353, equation 5) takes m (W + s B A) / |W + s B A| for the whole
    matrix, with a trained length m for each output, which starts as |W|.

    Args:
        backbone: The model to adapt; its weights are frozen in place.
        settings: The shape of the updates.

    Raises:
        ValueError: If the targets fit no layer, or one that cannot be adapted.
    """
    targets = settings.target_modules
    problem = find_target_problem(backbone, targets) or find_shared_problem(backbone, targets)
    if problem:
        raise ValueError(problem)
    config = LoraConfig(
        task_type=TaskType.SEQ_2_SEQ_LM,
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        use_dora=settings.use_dora,
        use_rslora=settings.use_rslora,
    )
    return get_peft_model(backbone, config, adapter_name=POLICY)


def attach_soft_prompt(
    backbone: PreTrainedModel,
    virtual_tokens: int,
    init: Start = "vocabulary",
    init_text: str | None = None,
) -> PeftModel:
    """Freeze a backbone and put trained vectors before its encoder's input embeddings.

    Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning", arXiv
    2104.08691. The starts, of which its section 3.2 compares the first two:

    - ``random``: uniform in [-0.5, 0.5]. T5 divides the length of every vector out before each
      layer, so what the scale decides is how far a step of the optimizer turns a vector; PEFT's
      own random start, N(0, 1), is 3.5 times as long as the paper's and turns as much slower.
    - ``vocabulary``: embeddings of distinct tokens drawn from the 5,000 most common. A T5 tokenizer
      lists its tokens from the most common on; special tokens are left out.
    - ``text``: embeddings of the tokens of ``init_text``, repeated or cut to the number.

    Args:
        backbone: The model to steer; its weights are frozen in place.
        virtual_tokens: Number of trained vectors.
        init: Where they start.
        init_text: The text for ``text``.
    """
    if backbone.get_input_embeddings().weight.is_meta:
        # There a model is only counted, and its tokenizer need not be at hand.
        init = "random"
    is_text = init == "text"
    config = PromptTuningConfig(
        task_type=TaskType.SEQ_2_SEQ_LM,
        num_virtual_tokens=virtual_tokens,
        prompt_tuning_init={"random": "RANDOM", "vocabulary": "SAMPLE_VOCAB", "text": "TEXT"}[init],
        prompt_tuning_init_text=init_text if is_text else None,
        tokenizer_name_or_path=backbone.name_or_path if is_text else None,
        # For an encoder-decoder PEFT would allocate a second set of rows for the decoder that
        # never enters the computation and never gets a gradient.
        num_transformer_submodules=1,
    )
    model = get_peft_model(backbone, config, adapter_name=POLICY)
    rows = model.prompt_encoder[POLICY].embedding.weight
    if init == "random":
        nn.init.uniform_(rows, -0.5, 0.5)
    elif init == "vocabulary":
        tokens = draw_common_tokens(load_tokenizer(backbone.name_or_path), virtual_tokens)
        rows.data.copy_(backbone.get_input_embeddings().weight[tokens])
    return model


def find_start_problem(virtual_tokens: int, init: str, init_text: str | None) -> str | None:
    """Say why a soft prompt cannot start so, or return None where it can."""
    problems = []
    if virtual_tokens < 1:
        problems.append(f"virtual_tokens must be at least 1, got {virtual_tokens}")
    if init not in get_args(Start):
        problems.append(f"init must be one of {', '.join(get_args(Start))}, got {init!r}")
    if init == "text" and not (init_text or "").strip():
        problems.append("init: text starts from a text; give it as init_text")
    if init != "text" and init_text is not None:
        problems.append(f"init_text changes nothing with init: {init}; set init: text")
    return "; ".join(problems) or None


def draw_common_tokens(tokenizer: PreTrainedTokenizerBase, number: int) -> Tensor:
    """Draw tokens from the 5,000 first of a vocabulary that are not special: int64 [number].

    They are distinct as long as there are enough.
    """
    special = set(tokenizer.all_special_ids)
    common = [token for token in range(len(tokenizer)) if token not in special][:COMMON_TOKENS]
    drawn = torch.tensor(common)[torch.randperm(len(common))]
    return drawn.repeat(-(-number // len(common)))[:number]


def continue_lora(backbone: PreTrainedModel, path: str, settings: LoRASettings) -> PeftModel:
    """Load an exported LoRA to go on training from.

    Args:
        backbone: The model that it was trained on; its weights are frozen in place.
        path: Folder written by ``save_pretrained`` of a LoRA.
        settings: Its shape; the dropout may be another.

    Raises:
        ValueError: If the adapter has another shape.
    """
    if problem := find_shape_problem(backbone, path, settings):
        raise ValueError(problem)
    config = LoraConfig.from_pretrained(path)
    config.lora_dropout = settings.dropout
    with fitting(path):
        model = PeftModel.from_pretrained(
            backbone, path, POLICY, is_trainable=True, config=config, torch_device="cpu"
        )
        check_weights(model, POLICY, path)
    return model


def attach_trained_lora(backbone: PreTrainedModel, path: str) -> PeftModel:
    """Load an exported LoRA twice on one backbone: to train on, and frozen as the reference.

    The reference of a policy that starts from a trained adapter is that adapter, not the backbone
    with adapters off: only then is the KL 0 at step 0. The two share the backbone's memory.

    Args:
        backbone: The model that the adapter was trained on.
        path: Folder written by ``save_pretrained`` of a LoRA.

    Raises:
        ValueError: If its weights do not fit the backbone.
    """
    with fitting(path):
        model = PeftModel.from_pretrained(backbone, path, adapter_name=POLICY, is_trainable=True)
        model.load_adapter(path, adapter_name=REFERENCE, is_trainable=False)
        check_weights(model, POLICY, path)
    model.set_adapter(POLICY)
    return model


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Count the trained parameters and all of them; one that is shared counts once."""
    parameters = list(model.parameters())
    return (
        sum(shape_of(p).numel() for p in parameters if p.requires_grad),
        sum(shape_of(p).numel() for p in parameters),
    )


def find_adapter_problem(path: str, backbone: str, kind: str = "LORA") -> str | None:
    """Say why an exported adapter cannot start a run on this backbone; None where it can.

    Args:
        path: The adapter's export folder.
        backbone: The backbone of the run.
        kind: What PEFT calls the kind of adapter that is wanted.
    """
    config = read_adapter_config(path)
    if config is None:
        return (
            f"adapter: {path!r} is no exported adapter (no adapter_config.json in it); "
            "name the export folder of a run, such as runs/lora/export"
        )
    if config.get("peft_type") != kind:
        return f"adapter: {path!r} is a {config.get('peft_type')} adapter; here {kind} is wanted"
    made_on, wanted = config.get("base_model_name_or_path"), resolve_model(backbone)
    if made_on != wanted:
        return f"adapter: {path!r} was trained on {made_on!r}, and the backbone here is {wanted!r}"
    return None


def find_shape_problem(model: PreTrainedModel, path: str, settings: LoRASettings) -> str | None:
    """Say where an exported LoRA has another shape than the settings, or return None.

    Args:
        model: The backbone; on the meta device will do.
        path: Export folder of the LoRA.
        settings: What this run was told.
    """
    config = read_adapter_config(path) or {}
    its: dict[str, Any] = {"r": config.get("r"), "alpha": config.get("lora_alpha")}
    # Files of an older PEFT lack the younger settings.
    its |= {name: config.get(name, False) for name in ("use_dora", "use_rslora")}
    differing = {name: value for name, value in its.items() if value != getattr(settings, name)}
    targets = config.get("target_modules") or []
    if set(match_targets(model, targets)) != set(match_targets(model, settings.target_modules)):
        differing["target_modules"] = targets if isinstance(targets, str) else sorted(targets)
    if not differing:
        return None
    wanted = ", ".join(f"{name} {value}" for name, value in differing.items())
    mine = ", ".join(f"{name} {getattr(settings, name)}" for name in differing)
    return f"adapter: {path!r} has {wanted}, and this run says {mine}; a LoRA keeps its shape"


def attach_soft_prompt_reference(model: PeftModel) -> None:
    """Freeze a copy of a policy's soft prompt as its reference, beside it on the same backbone."""
    model.add_adapter(REFERENCE, copy.copy(model.peft_config[POLICY]))
    model.prompt_encoder[REFERENCE].load_state_dict(model.prompt_encoder[POLICY].state_dict())
    model.prompt_encoder[REFERENCE].requires_grad_(False)
    model.set_adapter(POLICY)


def unwrap(model: Any) -> Any:
    """Give the encoder-decoder itself: a LoRA's layers lie in it, a soft prompt does not."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def find_virtual_tokens(model: Any, rows: int) -> Tensor | None:
    """Give the active soft prompt's vectors for so many rows, [rows, V, d]; None without one."""
    if not isinstance(model, PeftModel) or not model.active_peft_config.is_prompt_learning:
        return None
    return model.get_prompt(rows)[:, : model.active_peft_config.num_virtual_tokens]


def encoder_is_trained(model: Any) -> bool:
    """Whether anything that the encoder's output depends on is trained."""
    if find_virtual_tokens(model, 1) is not None:
        return True
    encoder = unwrap(model).get_encoder()
    return any(p.requires_grad for p in encoder.parameters())


@contextmanager
def reference_policy(model: Any, reference: Any = None) -> Iterator[Any]:
    """Give the model that computes the reference policy inside a ``with`` block.

    The reference is a model of its own if there is one, else the frozen adapter that the policy
    started from, or, for a policy that started from nothing, the backbone with adapters off. After
    the block the policy is active again.

    Args:
        model: The policy.
        reference: A frozen model of its own, for a policy that is no adapter.
    """
    if reference is not None:
        yield reference
        return
    with use_adapter(model, REFERENCE if REFERENCE in model.peft_config else None):
        yield model

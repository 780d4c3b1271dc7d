"""Attach a LoRA or a soft prompt to a backbone; switch between policy and reference."""

import copy
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, PromptTuningConfig, TaskType, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from hub import resolve_model

POLICY = "default"
"""Name of the adapter that is trained; PEFT writes the one of this name at a folder's top."""

REFERENCE = "reference"
"""Name of the frozen adapter that a policy started from."""


def attach_lora(
    backbone: PreTrainedModel,
    r: int,
    alpha: int,
    dropout: float,
    target_modules: list[str] | str,
) -> PeftModel:
    """Freeze a backbone and add low-rank updates to some of its linear layers.

    Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", equation 3:
    h = W x + (alpha / r) B A x with B = 0 at the start, so a fresh LoRA changes nothing.

    Args:
        backbone: The model to adapt; its weights are frozen in place.
        r: Rank of the update.
        alpha: Numerator of its scale alpha / r.
        dropout: Dropout on the input of A.
        target_modules: Ends of the names of the layers to adapt, for T5 ``q``, ``k``, ``v``, ``o``,
            ``wi_0``, ``wi_1``, ``wo``.

    Raises:
        ValueError: If a name in ``target_modules`` fits no layer.
    """
    names = [name for name, module in backbone.named_modules() if isinstance(module, nn.Linear)]
    ends = sorted({name.rsplit(".", 1)[-1] for name in names})
    if isinstance(target_modules, str):
        if not any(re.fullmatch(target_modules, name) for name in names):
            raise ValueError(f"target_modules: no linear layer matches {target_modules!r}")
    elif missing := [target for target in target_modules if target not in ends]:
        raise ValueError(f"target_modules: no linear layer is named {missing}; there are {ends}")
    config = LoraConfig(
        task_type=TaskType.SEQ_2_SEQ_LM,
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=target_modules,
    )
    return get_peft_model(backbone, config, adapter_name=POLICY)


def attach_soft_prompt(
    backbone: PreTrainedModel, virtual_tokens: int, init_text: str | None
) -> PeftModel:
    """Freeze a backbone and put trained vectors before its encoder's input embeddings.

    Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning".

    Args:
        backbone: The model to steer; its weights are frozen in place.
        virtual_tokens: Number of trained vectors.
        init_text: Text whose embeddings are the start; None starts from random rows of the
            vocabulary's embeddings.
    """
    config = PromptTuningConfig(
        task_type=TaskType.SEQ_2_SEQ_LM,
        num_virtual_tokens=virtual_tokens,
        prompt_tuning_init="SAMPLE_VOCAB" if init_text is None else "TEXT",
        prompt_tuning_init_text=init_text,
        tokenizer_name_or_path=None if init_text is None else backbone.name_or_path,
        # For an encoder-decoder PEFT would allocate a second set of rows for the decoder that
        # never enters the computation and never gets a gradient.
        num_transformer_submodules=1,
    )
    return get_peft_model(backbone, config, adapter_name=POLICY)


def find_adapter_problem(path: str, backbone: str, kind: str = "LORA") -> str | None:
    """Say why an exported adapter cannot start a run on this backbone; None where it can.

    Args:
        path: The adapter's export folder.
        backbone: The backbone of the run.
        kind: What PEFT calls the kind of adapter that is wanted.
    """
    file = Path(path) / "adapter_config.json"
    if not file.is_file():
        return (
            f"adapter: {path!r} is no exported adapter (no adapter_config.json in it); "
            "name the export folder of a run, such as runs/lora/export"
        )
    config = json.loads(file.read_text())
    if config.get("peft_type") != kind:
        return f"adapter: {path!r} is a {config.get('peft_type')} adapter; this policy takes {kind}"
    made_on, wanted = config.get("base_model_name_or_path"), resolve_model(backbone)
    if made_on != wanted:
        return f"adapter: {path!r} was trained on {made_on!r}, and the backbone here is {wanted!r}"
    return None


def attach_trained_lora(backbone: PreTrainedModel, path: str) -> PeftModel:
    """Load an exported LoRA twice on one backbone: to train on, and frozen as the reference.

    The reference of a policy that starts from a trained adapter is that adapter, not the backbone
    with adapters off: only then is the KL 0 at step 0. The two share the backbone's memory.

    Args:
        backbone: The model that the adapter was trained on.
        path: Folder written by ``save_pretrained`` of a LoRA.
    """
    model = PeftModel.from_pretrained(backbone, path, adapter_name=POLICY, is_trainable=True)
    model.load_adapter(path, adapter_name=REFERENCE, is_trainable=False)
    model.set_adapter(POLICY)
    return model


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
    elif REFERENCE not in model.peft_config:
        with model.disable_adapter():
            yield model
    else:
        try:
            _activate(model, REFERENCE, inference_mode=True)
            yield model
        finally:
            _activate(model, POLICY, inference_mode=False)


def _activate(model: PeftModel, adapter: str, inference_mode: bool) -> None:
    """Switch adapters; PEFT's way of it sets what is trained as well, which a frozen one is not."""
    if model.peft_config[adapter].is_prompt_learning:
        model.active_adapter = adapter
    else:
        model.base_model.set_adapter(adapter, inference_mode=inference_mode)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Count the trained parameters and all of them; one that is shared counts once."""
    parameters = list(model.parameters())
    return (
        sum(p.numel() for p in parameters if p.requires_grad),
        sum(p.numel() for p in parameters),
    )

"""Attach a LoRA or a soft prompt to a backbone; switch between policy and reference."""

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, PromptTuningConfig, TaskType, get_peft_model
from torch import nn
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
    target_modules: list[str],
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
    if missing := [target for target in target_modules if target not in ends]:
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


def read_adapter_config(folder: str | Path) -> dict[str, Any] | None:
    """Read what PEFT wrote about an exported adapter; None where the folder holds none.

    Raises:
        ValueError: If the file is not a JSON object.
    """
    file = Path(folder) / "adapter_config.json"
    if not file.is_file():
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}); export the adapter again") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} holds no JSON object; export the adapter again")
    return config


def load_adapters(backbone: PreTrainedModel, folders: Mapping[str, str | Path]) -> PeftModel:
    """Load exported adapters onto one backbone, frozen; the first is active.

    Args:
        backbone: The model that all of them were trained on.
        folders: Export folder of each adapter by the name that it is to have.

    Raises:
        ValueError: If there is none, they are not of one kind, or one does not fit the backbone.
    """
    configs = {name: read_adapter_config(folder) for name, folder in folders.items()}
    if missing := [str(folders[name]) for name, config in configs.items() if config is None]:
        raise ValueError(f"no adapter_config.json in {', '.join(missing)}: no exported adapter")
    kinds = {name: str((config or {}).get("peft_type")) for name, config in configs.items()}
    if len(set(kinds.values())) != 1:
        raise ValueError(
            f"a backbone takes one adapter or more, all of one kind; got {kinds or 'none'}"
        )
    model: PeftModel | None = None
    for name, folder in folders.items():
        with _strict_loading(folder):
            if model is None:
                model = PeftModel.from_pretrained(
                    backbone, str(folder), adapter_name=name, torch_device="cpu"
                )
            elif lost := model.load_adapter(str(folder), name, torch_device="cpu").missing_keys:
                raise ValueError(f"weights are missing: {lost[:3]}")
    return model


@contextmanager
def _strict_loading(folder: str | Path) -> Iterator[None]:
    """Turn PEFT's warning about missing weights, and torch's errors, into one clear error."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            yield
    except (RuntimeError, UserWarning, ValueError) as error:
        raise ValueError(f"the adapter in {folder} does not fit the backbone: {error}") from error


def find_adapter_problem(path: str, backbone: str) -> str | None:
    """Say why an exported LoRA cannot start a run on this backbone, or return None where it can."""
    config = read_adapter_config(path)
    if config is None:
        return (
            f"adapter: {path!r} is no exported adapter (no adapter_config.json in it); "
            "name the export folder of a LoRA run, such as runs/lora/export"
        )
    if config.get("peft_type") != "LORA":
        return f"adapter: {path!r} is a {config.get('peft_type')} adapter; a PPO policy takes LORA"
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


@contextmanager
def reference_policy(model: PeftModel) -> Iterator[None]:
    """Let the model compute the reference policy inside a ``with`` block, and the policy after it.

    The reference is the frozen adapter that the policy started from, or, for a policy that started
    from nothing, the backbone with adapters off.
    """
    if REFERENCE not in model.peft_config:
        with model.disable_adapter():
            yield
        return
    try:
        model.base_model.set_adapter(REFERENCE, inference_mode=True)
        yield
    finally:
        model.base_model.set_adapter(POLICY)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Count the trained parameters and all of them; one that is shared counts once."""
    parameters = list(model.parameters())
    return (
        sum(p.numel() for p in parameters if p.requires_grad),
        sum(p.numel() for p in parameters),
    )

"""Attach a soft prompt to a backbone, and a frozen copy as its reference."""

import copy
from typing import Literal, get_args

import torch
from peft import PeftModel, PromptTuningConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from common.hub import load_tokenizer
from lightning_modules.backbones import find_soft_prompt_problem, task_type
from lightning_modules.policies.adapters import POLICY, REFERENCE

Start = Literal["random", "vocabulary", "text"]
"""Initialization of a soft prompt."""

COMMON_TOKENS = 5000
"""Number of common tokens in a vocabulary (Lester et al. 2021, section 3.2)."""


def attach_soft_prompt(
    backbone: PreTrainedModel,
    virtual_tokens: int,
    init: Start = "vocabulary",
    init_text: str | None = None,
) -> PeftModel:
    """Freeze a backbone and put trained vectors before its input embeddings.

    Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning", arXiv
    2104.08691. Section 3.2 compares the first two initializations:

    - ``random``: uniform in [-0.5, 0.5]. T5 normalizes every vector before each layer, so the scale
      only decides how far an optimizer step rotates a vector. PEFT's own initialization, N(0, 1),
      is 3.5 times as long and rotates that much more slowly.
    - ``vocabulary``: embeddings of distinct tokens drawn from the 5,000 most common, without
      special tokens. T5 tokenizers order tokens by frequency.
    - ``text``: embeddings of the tokens of ``init_text``, repeated or cut to the number.

    Args:
        backbone: The model to steer; its weights are frozen in place.
        virtual_tokens: Number of trained vectors.
        init: Their initialization.
        init_text: The text for ``text``.

    Raises:
        ValueError: If the architecture cannot take a soft prompt.
    """
    if backbone.get_input_embeddings().weight.is_meta:
        init = "random"  # only parameters are counted there, and a tokenizer may be missing
    elif problem := find_soft_prompt_problem(backbone):
        raise ValueError(_refuse(backbone, problem))
    is_text = init == "text"
    config = PromptTuningConfig(
        task_type=task_type(backbone),
        num_virtual_tokens=virtual_tokens,
        prompt_tuning_init={"random": "RANDOM", "vocabulary": "SAMPLE_VOCAB", "text": "TEXT"}[init],
        prompt_tuning_init_text=init_text if is_text else None,
        tokenizer_name_or_path=backbone.name_or_path if is_text else None,
        # For an encoder-decoder PEFT would allocate a second set of rows for the decoder that
        # never enters the computation and never gets a gradient.
        num_transformer_submodules=1,
    )
    try:
        model = get_peft_model(backbone, config, adapter_name=POLICY)
    except ValueError as error:  # sizes that the config does not have at its top level
        raise ValueError(_refuse(backbone, f"PEFT cannot build one ({error})")) from error
    rows = model.prompt_encoder[POLICY].embedding.weight
    if init == "random":
        nn.init.uniform_(rows, -0.5, 0.5)
    elif init == "vocabulary":
        tokens = draw_common_tokens(load_tokenizer(backbone.name_or_path), virtual_tokens)
        rows.data.copy_(backbone.get_input_embeddings().weight[tokens])
    return model


def _refuse(backbone: PreTrainedModel, reason: str) -> str:
    return (
        f"soft prompts do not work with {type(backbone).__name__}: {reason}; use a LoRA, or a T5 "
        "or BART backbone"
    )


def find_start_problem(virtual_tokens: int, init: str, init_text: str | None) -> str | None:
    """Explain what is wrong with the settings of a soft prompt, or return None."""
    problems = []
    if virtual_tokens < 1:
        problems.append(f"virtual_tokens must be at least 1, got {virtual_tokens}")
    if init not in get_args(Start):
        problems.append(f"init must be one of {', '.join(get_args(Start))}, got {init!r}")
    if init == "text" and not (init_text or "").strip():
        problems.append("init: text needs a text; set init_text")
    if init != "text" and init_text is not None:
        problems.append(f"init_text has no effect with init: {init}; set init: text")
    return "; ".join(problems) or None


def draw_common_tokens(tokenizer: PreTrainedTokenizerBase, number: int) -> Tensor:
    """Draw token ids among a vocabulary's 5,000 most common ones: int64 [number].

    They are distinct if there are enough, and never special tokens.
    """
    special = set(tokenizer.all_special_ids)
    common = [token for token in range(len(tokenizer)) if token not in special][:COMMON_TOKENS]
    drawn = torch.tensor(common)[torch.randperm(len(common))]
    return drawn.repeat(-(-number // len(common)))[:number]


def attach_soft_prompt_reference(model: PeftModel) -> None:
    """Add a frozen copy of a policy's soft prompt to the same backbone as its reference."""
    model.add_adapter(REFERENCE, copy.copy(model.peft_config[POLICY]))
    model.prompt_encoder[REFERENCE].load_state_dict(model.prompt_encoder[POLICY].state_dict())
    model.prompt_encoder[REFERENCE].requires_grad_(False)
    model.set_adapter(POLICY)

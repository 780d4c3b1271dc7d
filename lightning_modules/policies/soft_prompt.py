"""Attach a soft prompt to a backbone."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from peft import PeftModel, PromptTuningConfig
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from common.hub import load_tokenizer
from lightning_modules.policies.adapters import POLICY, attach_adapter

Start = Literal["random", "vocabulary", "text"]
"""Initialization of a soft prompt."""

COMMON_TOKENS = 5000
"""Number of common tokens in a vocabulary (Lester et al. 2021, section 3.2)."""


@dataclass(frozen=True)
class SoftPromptSettings:
    """Settings of a new soft prompt.

    Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning", arXiv
    2104.08691. Section 3.2 compares the first two initializations:

    - ``random``: uniform in [-0.5, 0.5]. T5 normalizes every vector before each layer, so the scale
      only decides how far an optimizer step rotates a vector. PEFT's own initialization, N(0, 1),
      is 3.5 times as long and rotates that much more slowly.
    - ``vocabulary``: embeddings of distinct tokens drawn from the 5,000 most common, without
      special tokens. T5 tokenizers order tokens by frequency.
    - ``text``: embeddings of the tokens of ``init_text``, repeated or cut to the number.

    Args:
        virtual_tokens: Number of trained vectors.
        init: Their initialization.
        init_text: The text for ``text``.

    Raises:
        ValueError: If ``virtual_tokens`` is not positive, or ``init`` and ``init_text`` disagree.
    """

    virtual_tokens: int = 100
    init: Start = "vocabulary"
    init_text: str | None = None

    def __post_init__(self) -> None:
        problems = []
        if self.virtual_tokens < 1:
            problems.append(f"virtual_tokens must be at least 1, got {self.virtual_tokens}")
        if self.init not in get_args(Start):
            problems.append(f"init must be one of {', '.join(get_args(Start))}, got {self.init!r}")
        if self.init == "text" and not (self.init_text or "").strip():
            problems.append("init: text needs a text; set init_text")
        if self.init != "text" and self.init_text is not None:
            problems.append(f"init_text has no effect with init: {self.init}; set init: text")
        if problems:
            raise ValueError("; ".join(problems))


def attach_soft_prompt(backbone: PreTrainedModel, settings: SoftPromptSettings) -> PeftModel:
    """Freeze a backbone and put trained vectors before its input embeddings.

    Args:
        backbone: The model to steer; its weights are frozen in place.
        settings: Number and initialization of the vectors.

    Raises:
        ValueError: If the architecture does not accept a soft prompt.
    """
    number, name = settings.virtual_tokens, backbone.name_or_path
    # On the meta device parameters are only counted, and a tokenizer may be missing.
    init = "random" if backbone.get_input_embeddings().weight.is_meta else settings.init
    config = PromptTuningConfig(
        num_virtual_tokens=number,
        prompt_tuning_init="TEXT" if init == "text" else "RANDOM",
        prompt_tuning_init_text=settings.init_text if init == "text" else None,
        tokenizer_name_or_path=name if init == "text" else None,
        # For an encoder-decoder PEFT would allocate a second set of rows for the decoder that
        # never enters the computation and never gets a gradient.
        num_transformer_submodules=1,
    )
    model = attach_adapter(backbone, config)
    rows = model.prompt_encoder[POLICY].embedding.weight
    if init == "random":
        nn.init.uniform_(rows, -0.5, 0.5)
    elif init == "vocabulary":
        tokens = draw_common_tokens(load_tokenizer(name), number)
        rows.data.copy_(backbone.get_input_embeddings().weight[tokens])
    return model


def draw_common_tokens(tokenizer: PreTrainedTokenizerBase, number: int) -> Tensor:
    """Draw token ids from the 5,000 most common ones of a vocabulary: int64 [number].

    They are distinct if there are enough, and never special tokens.
    """
    special = set(tokenizer.all_special_ids)
    common = [token for token in range(len(tokenizer)) if token not in special][:COMMON_TOKENS]
    drawn = torch.tensor(common)[torch.randperm(len(common))]
    return drawn.repeat(-(-number // len(common)))[:number]

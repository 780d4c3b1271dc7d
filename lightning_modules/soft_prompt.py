"""SoftPrompt: trained vectors before the input of a frozen backbone."""

from typing import Any, get_args

from torch import nn
from transformers import PreTrainedModel

from lightning_modules.adapters import Start, attach_soft_prompt
from lightning_modules.summarization import SummarizationModule


class SoftPrompt(SummarizationModule):
    """Prompt tuning (Lester et al. 2021): 20 to 100 virtual tokens; wants a high learning rate.

    Args:
        virtual_tokens: Number of trained vectors before the prompt.
        init: Where they start: ``random`` (uniform in [-0.5, 0.5]), ``vocabulary`` (embeddings of
            common tokens) or ``text`` (embeddings of ``init_text``).
        init_text: The text to start from, repeated or cut to the number of vectors.
        **kwargs: See :class:`SummarizationModule`.

    Raises:
        ValueError: If ``virtual_tokens`` is not positive, or ``init`` and ``init_text`` disagree.
    """

    def __init__(
        self,
        backbone: str,
        virtual_tokens: int = 100,
        init: Start = "vocabulary",
        init_text: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, **kwargs)
        problems = []
        if virtual_tokens < 1:
            problems.append(f"virtual_tokens must be at least 1, got {virtual_tokens}")
        if init not in get_args(Start):
            problems.append(f"init must be one of {', '.join(get_args(Start))}, got {init!r}")
        if init == "text" and not (init_text or "").strip():
            problems.append("init: text starts from a text; give it as init_text")
        if init != "text" and init_text is not None:
            problems.append(f"init_text changes nothing with init: {init}; set init: text")
        if problems:
            raise ValueError("; ".join(problems))
        self.virtual_tokens = virtual_tokens
        self.init = init
        self.init_text = init_text

    def attach(self, backbone: PreTrainedModel) -> nn.Module:
        """Freeze the backbone and add the virtual tokens."""
        return attach_soft_prompt(backbone, self.virtual_tokens, self.init, self.init_text)

"""Prompt styles: the words around a dialogue.

A style is a prefix and a suffix, so that truncation can shorten the dialogue between them and never
the instruction. ``answer`` stands between a prompt and its summary in few-shot examples.
"""


class PromptStyle:
    """The words around a dialogue.

    Attributes:
        prefix: What comes before the dialogue.
        suffix: What comes after it; the model answers from here.
        answer: What stands between the suffix and the summary of an example.
    """

    prefix: str = ""
    suffix: str = ""
    answer: str = "\n"

    def wrap(self, dialogue: str) -> str:
        """Give the prompt for a dialogue."""
        return f"{self.prefix}{dialogue}{self.suffix}"

    def example(self, dialogue: str, summary: str) -> str:
        """Give the block that shows one solved task before the question."""
        return f"{self.wrap(dialogue)}{self.answer}{summary}\n\n\n"


class Plain(PromptStyle):
    """No instruction: the dialogue alone."""


class Instruction(PromptStyle):
    """``Summarize the following conversation.``, the dialogue, ``Summary:``."""

    prefix = "Summarize the following conversation.\n\n"
    suffix = "\n\nSummary:"
    answer = " "


class SpacedInstruction(Instruction):
    """``Instruction`` with a space at its end, as in the original project's fine-tuning.

    T5's tokenizer splits at white space and drops it, so to T5 the two are the same tokens. To a
    byte-level tokenizer, such as the miniature's, they are not.
    """

    suffix = "\n\nSummary: "
    answer = ""


class Flan(PromptStyle):
    """The template that FLAN was tuned with for dialogue summaries (Wei et al. 2022)."""

    prefix = "Dialogue:\n\n"
    suffix = "\n\nWhat was going on?"


class Professional(PromptStyle):
    """FLAN's template after a sentence that gives the model a part to play."""

    prefix = "You are a professional text summarizer.\n\nDialogue:\n\n"
    suffix = "\n\nWhat was going on?"


class Template(PromptStyle):
    """A template of one's own.

    Args:
        template: The prompt, with ``{dialogue}`` once where the dialogue goes.
        answer: What stands between the prompt and the summary of an example.

    Raises:
        ValueError: If ``{dialogue}`` does not stand in the template exactly once.
    """

    def __init__(self, template: str, answer: str = "\n") -> None:
        if template.count("{dialogue}") != 1:
            raise ValueError(
                f"template {template!r} must have '{{dialogue}}' once, where the dialogue goes; "
                f"it stands there {template.count('{dialogue}')} times"
            )
        self.prefix, self.suffix = template.split("{dialogue}")
        self.answer = answer

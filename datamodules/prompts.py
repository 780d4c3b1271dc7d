"""Prompt styles: the words around a dialogue.

A style is a prefix and a suffix, so that truncation can shorten the dialogue between them but never
the instruction. In few-shot examples, ``answer`` separates a prompt from its summary.
"""


class PromptStyle:
    """The words around a dialogue.

    Attributes:
        prefix: The text before the dialogue.
        suffix: The text after it; the model's answer follows.
        answer: The text between the suffix and the summary of an example.
    """

    prefix: str = ""
    suffix: str = ""
    answer: str = "\n"

    def wrap(self, dialogue: str) -> str:
        """Return the prompt for a dialogue."""
        return f"{self.prefix}{dialogue}{self.suffix}"

    def example(self, dialogue: str, summary: str) -> str:
        """Return the text of a solved example, which comes before the question."""
        return f"{self.wrap(dialogue)}{self.answer}{summary}\n\n\n"


class Plain(PromptStyle):
    """The dialogue without an instruction."""


class Instruction(PromptStyle):
    """``Summarize the following conversation.``, the dialogue, ``Summary:``."""

    prefix = "Summarize the following conversation.\n\n"
    suffix = "\n\nSummary:"
    answer = " "


class SpacedInstruction(Instruction):
    """``Instruction`` with a trailing space.

    T5's tokenizer splits at white space and drops it, so for T5 the tokens are the same. For a
    byte-level tokenizer, such as the miniature's, they differ.
    """

    suffix = "\n\nSummary: "
    answer = ""


class Flan(PromptStyle):
    """FLAN's template for dialogue summaries (Wei et al. 2022)."""

    prefix = "Dialogue:\n\n"
    suffix = "\n\nWhat was going on?"


class Professional(PromptStyle):
    """FLAN's template after a sentence that assigns the model a role."""

    prefix = "You are a professional text summarizer.\n\nDialogue:\n\n"
    suffix = "\n\nWhat was going on?"


class Template(PromptStyle):
    """A custom template.

    Args:
        template: The prompt, with ``{dialogue}`` once where the dialogue goes.
        answer: The text between the prompt and the summary of an example.

    Raises:
        ValueError: If the template does not contain ``{dialogue}`` exactly once.
    """

    def __init__(self, template: str, answer: str = "\n") -> None:
        if template.count("{dialogue}") != 1:
            raise ValueError(
                f"template {template!r} must contain '{{dialogue}}' once, where the dialogue goes; "
                f"it contains it {template.count('{dialogue}')} times"
            )
        self.prefix, self.suffix = template.split("{dialogue}")
        self.answer = answer

"""Data: where dialogues come from, how they are prompted, tokenised and batched."""

from datamodules.dialogsum import DialogSumDataModule
from datamodules.examples import (
    ExampleSelector,
    FixedExamples,
    RandomExamples,
    SimilarExamples,
)
from datamodules.prompts import (
    Flan,
    Instruction,
    Plain,
    Professional,
    PromptStyle,
    SpacedInstruction,
    Template,
)

__all__ = [
    "DialogSumDataModule",
    "ExampleSelector",
    "FixedExamples",
    "Flan",
    "Instruction",
    "Plain",
    "Professional",
    "PromptStyle",
    "RandomExamples",
    "SimilarExamples",
    "SpacedInstruction",
    "Template",
]

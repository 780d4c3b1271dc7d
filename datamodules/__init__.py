"""Data: where dialogues come from, how they are prompted, tokenised and batched."""

from datamodules.dialogsum import DialogSumDataModule
from datamodules.prompts import Flan, Instruction, Plain, Professional, PromptStyle, Template

__all__ = [
    "DialogSumDataModule",
    "Flan",
    "Instruction",
    "Plain",
    "Professional",
    "PromptStyle",
    "Template",
]

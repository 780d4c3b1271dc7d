"""Data: where dialogues come from, how they are prompted, tokenized and batched."""

from datamodules.dialogsum import DialogSumDataModule
from datamodules.dpo import DPODataModule
from datamodules.few_shot import (
    ExampleSelector,
    FixedExamples,
    RandomExamples,
    SimilarExamples,
)
from datamodules.labelled import LabelledTextDataModule
from datamodules.preferences import PreferenceDataModule
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
    "DPODataModule",
    "DialogSumDataModule",
    "ExampleSelector",
    "FixedExamples",
    "Flan",
    "Instruction",
    "LabelledTextDataModule",
    "Plain",
    "PreferenceDataModule",
    "Professional",
    "PromptStyle",
    "RandomExamples",
    "SimilarExamples",
    "SpacedInstruction",
    "Template",
]

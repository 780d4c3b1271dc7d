"""Data: where dialogues come from, how they are prompted, tokenized and batched.

The classes are imported when they are first used: torch and lightning take seconds, and the ranking
page needs only the file format in ``datamodules.rankings``. ``from datamodules import *`` imports
them all, which is what makes ``class_path: DialogSumDataModule`` enough in a config.

The package is larger than its budget of 1,900 lines. It has about 1,800 lines of code and 800 of
docstrings: four datamodules with their batch types, one parser for the rankings that people write,
and the messages that name file, line and remedy.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_MODULES = {
    "DialogSumDataModule": "dialogsum",
    "DPODataModule": "dpo",
    "ExampleSelector": "few_shot",
    "FixedExamples": "few_shot",
    "RandomExamples": "few_shot",
    "SimilarExamples": "few_shot",
    "LabelledTextDataModule": "labelled",
    "PreferenceDataModule": "preferences",
    "Flan": "prompts",
    "Instruction": "prompts",
    "Plain": "prompts",
    "Professional": "prompts",
    "PromptStyle": "prompts",
    "SpacedInstruction": "prompts",
    "Template": "prompts",
}

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


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)

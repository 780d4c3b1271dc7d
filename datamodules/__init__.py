"""Data: where dialogues come from, how they are prompted, tokenized and batched.

The classes are imported when they are first used: torch and lightning take seconds, and the ranking
page needs only the file format in ``datamodules.rankings``. ``from datamodules import *`` imports
them all, which is what makes ``class_path: DialogSumDataModule`` enough in a config.
"""

import importlib
from typing import Any

_CLASSES = {
    "dialogsum": ["DialogSumDataModule"],
    "dpo": ["DPODataModule"],
    "few_shot": ["ExampleSelector", "RandomExamples", "SimilarExamples"],
    "labelled": ["LabelledTextDataModule"],
    "preferences": ["PreferenceDataModule"],
    "prompts": [
        "Flan",
        "Instruction",
        "Plain",
        "Professional",
        "PromptStyle",
        "SpacedInstruction",
        "Template",
    ],
}
_MODULES = {name: module for module, names in _CLASSES.items() for name in names}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)

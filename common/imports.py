"""Find what a setting names by its dotted path, and build it."""

import importlib
from argparse import Namespace
from typing import Any


def import_object(path: str) -> Any:
    """Import a class or function by its dotted path.

    Raises:
        ImportError: If there is no such module.
        AttributeError: If the module has no such name.
        ValueError: If the path names no module.
    """
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def instantiate(settings: Any) -> Any:
    """Build a small object from its ``class_path`` and ``init_args``, nested ones included."""
    arguments = {
        name: instantiate(value) if hasattr(value, "class_path") else value
        for name, value in vars(settings.get("init_args") or Namespace()).items()
    }
    return import_object(settings.class_path)(**arguments)

"""Functions of other libraries, taken from the sources in their wheels.

Only the named functions are compiled, in a namespace of torch and of what else they need, so that
libraries with clashing requirements need not be installed, and their code runs as it is, without
decorators and annotations.
"""

import ast
import subprocess
import sys
import typing
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

CACHE = Path(__file__).parents[2] / ".conformance"

WHEELS = {
    "trl": "trl==0.11.4",  # PPO for encoder-decoders, DPO's variants, CPO, ORPO and KTO
    "trl-now": "trl==1.16.0",  # without PPO; CPO and ORPO are experimental
    "verl": "verl==0.9.1",
    "torchtune": "torchtune==0.6.1",
    "openrlhf": "openrlhf==0.11.2",
}
"""The same versions as in the extra `conformance` of setup.cfg."""


def find_sources(library: str) -> Path:
    """Return the folder of a library's sources; skip the test if no index has its wheel."""
    folder = CACHE / WHEELS[library]
    if not folder.is_dir():
        options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(CACHE)]
        command = [sys.executable, "-m", "pip", "download", *options, WHEELS[library]]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"{WHEELS[library]} cannot be downloaded: {done.stderr.strip()[-200:]}")
        wheel = next(CACHE.glob(f"{WHEELS[library].replace('==', '-')}-*.whl"))
        zipfile.ZipFile(wheel).extractall(folder)
    return next(path.parent for path in folder.rglob(f"{library.partition('-')[0]}/__init__.py"))


def take(library: str, file: str, *names: str, **known: Any) -> Any:
    """Compile functions or classes of a file, and return the last one.

    Args:
        library: Key of WHEELS.
        file: Path within the library.
        names: Names, each after those it needs; ``Class.method`` takes a method as a function.
        known: What else they need, by name.
    """
    text = (find_sources(library) / file).read_text(encoding="utf-8")
    module = ast.parse(text)
    definitions = {node.name: node for node in module.body if hasattr(node, "name")}
    namespace = {"torch": torch, "F": functional, "nn": torch.nn, **vars(typing)} | known
    for name in names:
        owner, _, method = name.rpartition(".")
        node: Any = definitions[owner or method]
        if owner:
            node = next(n for n in node.body if getattr(n, "name", "") == method)
        if not isinstance(node, ast.ClassDef):
            node.decorator_list, node.returns = [], None
        for each in ast.walk(node):
            if isinstance(each, ast.arg):
                each.annotation = None  # types of libraries that are not installed
        code = compile(ast.Module([node], []), file, "exec")
        exec(code, namespace)  # noqa: S102 - the library's own code, unchanged
    return namespace[names[-1].rpartition(".")[2]]

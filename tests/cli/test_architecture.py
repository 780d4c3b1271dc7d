"""Rules about the source code itself: public APIs only, and imports in one direction."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LAYERS = (
    "common", "metrics", "datamodules", "lightning_modules", "reporting", "callbacks",
    "collecting", "alignsum", "train",
)  # fmt: skip
"""Packages from the bottom to the top; each imports only itself and those before it."""

PUBLIC_UNDERSCORES = {"_fields", "_replace", "_asdict", "_make", "_exit"}
"""Documented names of namedtuples and `os._exit`."""


def sources() -> list[Path]:
    files = [ROOT / "train.py"]
    for package in LAYERS[:-1]:
        files += sorted((ROOT / package).rglob("*.py"))
    return files


def find_private(text: str) -> Iterator[tuple[int, str]]:
    """Yield line and name of each underscore name of a foreign object, by attribute or import.

    Own are names of `self` and `cls`, and those that this file itself defines or sets on them.
    """
    tree = ast.parse(text)
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            fields = [each for each in node.body if isinstance(each, ast.AnnAssign | ast.Assign)]
            for field in fields:
                targets = field.targets if isinstance(field, ast.Assign) else [field.target]
                own |= {target.id for target in targets if isinstance(target, ast.Name)}
        if is_of_self(node) and isinstance(node.ctx, ast.Store):
            own.add(node.attr)
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Attribute):
            # On self too: an inherited name of a library is as private as another object's.
            names = [node.attr]
        elif isinstance(node, ast.ImportFrom):
            outside = (node.module or "").split(".")[0] not in LAYERS and not node.level
            parts = (node.module or "").split(".") if outside else []
            names = [*parts, *(alias.name for alias in node.names)] if outside else []
            names = [name for name in names if name != "__future__"]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "setattr"):
            names = [a.value for a in node.args[1:2] if isinstance(a, ast.Constant)]
        for name in names:
            if is_private(name) and name not in own:
                yield node.lineno, name


def is_private(name: object) -> bool:
    return (
        isinstance(name, str)
        and name.startswith("_")
        and not name.startswith("__")
        and name not in PUBLIC_UNDERSCORES
    )


def is_of_self(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in ("self", "cls")
    )


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import torch\ntorch._dynamo.reset()", ["_dynamo"]),
        ("x._a = 1", ["_a"]),
        ("from torch._C import Node", ["_C"]),
        ("from torch.fx import _pytree", ["_pytree"]),
        ("getattr(x, '_b')", ["_b"]),
        ("setattr(x, '_b', 1)", ["_b"]),
        ("class A(B):\n    def f(self):\n        return self._inherited", ["_inherited"]),
        ("class A:\n    def f(self):\n        self._own = 1\n        return self._own", []),
        ("class A:\n    def _f(self): ...\n    def g(self): self._f()", []),
        ("point._replace(x=1); x.__class__", []),
        ("from common.hub import _x", []),
    ],
)
def test_private_names_are_found(code: str, found: list[str]) -> None:
    assert [name for _, name in find_private(code)] == found


def test_no_private_name_of_another_library_is_used() -> None:
    found = [
        f"{file.relative_to(ROOT)}:{line} {name}"
        for file in sources()
        if file != ROOT / "common" / "compat.py"
        for line, name in find_private(file.read_text(encoding="utf-8"))
    ]
    assert found == []


def find_imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.split(".")[0]


def test_imports_point_one_way() -> None:
    wrong = []
    for file in sources():
        path = str(file.relative_to(ROOT))
        own = LAYERS.index(path.split("/")[0].removesuffix(".py"))
        for name in find_imports(ast.parse(file.read_text(encoding="utf-8"))):
            is_upward = name in LAYERS and LAYERS.index(name) > own
            if is_upward or name in ("tests", "tools", "benchmarks", "examples"):
                wrong.append(f"{path} imports {name}")
    assert wrong == []


def test_no_python_file_is_longer_than_400_lines() -> None:
    files = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in sources()}
    assert [str(file) for file, count in files.items() if count > 400] == []


def test_the_root_has_one_python_file() -> None:
    assert [file.name for file in ROOT.glob("*.py")] == ["train.py"]

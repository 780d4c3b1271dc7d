"""Read the constructors of classes from source files, without importing torch or Lightning."""

import ast
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from alignsum.overlays import SHIPPED

PACKAGES = ("lightning_modules", "datamodules", "callbacks")

ROOTS = {"ABC", "Callback", "LightningModule", "LightningDataModule", "Module", "object"}
"""Base classes without parameters."""

SCALARS = {"int", "float", "bool", "str", "None"}


class Parameter(NamedTuple):
    """A constructor's argument: the names in its annotation, its choices, and its default."""

    types: frozenset[str]
    choices: tuple[str, ...]
    default: str


class Signature(NamedTuple):
    """A class: its base classes, the parameters of its own constructor, and its constants."""

    bases: tuple[str, ...]
    parameters: dict[str, Parameter]
    is_dataclass: bool
    flags: dict[str, bool]


@cache
def read_modules() -> list[ast.Module]:
    """Parse the modules of our packages, and Lightning's Trainer, callbacks and loggers."""
    files = [file for name in PACKAGES for file in sorted((SHIPPED / name).rglob("*.py"))]
    if lightning := find_package("lightning"):
        for name in ("callbacks", "loggers"):
            files = [*(lightning / "pytorch" / name).rglob("*.py"), *files]
        files.insert(0, lightning / "pytorch/trainer/trainer.py")
    return [ast.parse(file.read_text(encoding="utf-8")) for file in files if file.is_file()]


@cache
def read_classes() -> dict[str, Signature]:
    """Read the classes of these modules, by name."""
    nodes = [node for module in read_modules() for node in module.body]
    return {node.name: read_class(node) for node in nodes if isinstance(node, ast.ClassDef)}


@cache
def read_choices() -> dict[str, tuple[str, ...]]:
    """Read the names that these modules give to a ``Literal``."""
    nodes = [node for module in read_modules() for node in module.body]
    return {
        ast.unparse(node.targets[0]): read_parameter(node.value, "").choices
        for node in nodes
        if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("Literal[")
    }


@cache
def read_public_names(package: str, module: str = "") -> tuple[str, ...]:
    """Read the classes in a module's ``__all__``; empty if they cannot be found."""
    folder = find_package(package)
    file = folder / module / "__init__.py" if folder else None
    tree = ast.parse(file.read_text(encoding="utf-8") if file and file.is_file() else "")
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return tuple(
                n for n in ast.literal_eval(node.value) if n[0].isupper() and n != "Optimizer"
            )
    return ()


def find_package(name: str) -> Path | None:
    """Return the folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None


def read_class(node: ast.ClassDef) -> Signature:
    """Read one class."""
    decorators = " ".join(ast.unparse(each) for each in node.decorator_list)
    bases = tuple(ast.unparse(base).rpartition(".")[2] for base in node.bases)
    parameters: dict[str, Parameter] = {}
    flags: dict[str, bool] = {}
    for each in node.body:
        if isinstance(each, ast.FunctionDef) and each.name == "__init__":
            parameters |= read_arguments(each.args)
        elif isinstance(each, ast.AnnAssign) and "dataclass" in decorators:
            default = ast.unparse(each.value) if each.value else ""
            parameters[ast.unparse(each.target)] = read_parameter(each.annotation, default)
        elif isinstance(each, ast.Assign | ast.AnnAssign) and isinstance(each.value, ast.Constant):
            target = each.target if isinstance(each, ast.AnnAssign) else each.targets[0]
            if isinstance(each.value.value, bool):
                flags[ast.unparse(target)] = each.value.value
    return Signature(bases, parameters, "dataclass" in decorators, flags)


def read_arguments(arguments: ast.arguments) -> dict[str, Parameter]:
    """Read the arguments of a constructor, apart from self."""
    named = [*arguments.posonlyargs, *arguments.args][1:]
    missing = [None] * (len(named) - len(arguments.defaults))
    defaults = [*missing, *arguments.defaults[-len(named) :], *arguments.kw_defaults]
    return {
        argument.arg: read_parameter(argument.annotation, ast.unparse(default) if default else "")
        for argument, default in zip([*named, *arguments.kwonlyargs], defaults, strict=False)
    }


def read_parameter(annotation: ast.expr | None, default: str) -> Parameter:
    """Read an annotation."""
    types: set[str] = set()
    choices: list[str] = []
    for member in list_members(annotation):
        if isinstance(member, ast.Subscript) and ast.unparse(member.value).endswith("Literal"):
            values = ast.literal_eval(member.slice)
            choices += map(str, values if isinstance(values, tuple) else (values,))
        else:
            types.add(ast.unparse(member).rpartition(".")[2])
    return Parameter(frozenset(types), tuple(choices), default)


def list_members(annotation: ast.expr | None) -> Iterator[ast.expr]:
    """Yield the members of a union."""
    if isinstance(annotation, ast.BinOp):
        yield from list_members(annotation.left)
        yield from list_members(annotation.right)
    elif isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) in (
        "Optional", "Union",
    ):  # fmt: skip
        inner = annotation.slice
        for member in inner.elts if isinstance(inner, ast.Tuple) else [inner]:
            yield from list_members(member)
        if ast.unparse(annotation.value) == "Optional":
            yield ast.Constant(None)
    elif annotation is not None:
        yield annotation


def find_parameters(name: str) -> dict[str, Parameter] | None:
    """Return a class's parameters, its base classes' included; None if a base is unknown."""
    found: dict[str, Parameter] = {}
    signature = read_classes().get(name)
    if signature is None:
        return None
    for base in signature.bases:
        inherited = {} if base in ROOTS else find_parameters(base)
        if inherited is None:
            return None
        found |= inherited
    return found | signature.parameters


def find_flag(name: str, flag: str) -> bool | None:
    """Return a true or false constant of a class or its bases, or None if there is none."""
    signature = read_classes().get(name)
    if signature is None:
        return None
    inherited = [find_flag(base, flag) for base in signature.bases]
    return signature.flags.get(flag, next((each for each in inherited if each is not None), None))


def find_subclasses(name: str) -> list[str]:
    """Return the names of all classes derived from a class, or its own name if there are none."""
    names = [name]
    for found in names:
        names += [
            each for each, signature in read_classes().items()
            if found in signature.bases and each not in names
        ]  # fmt: skip
    return [each for each in names[1:] or names if not each.startswith("_")]

"""What a package offers is what its `__all__` says, and its annotations can be read while it runs."""

import ast
import importlib
import inspect
import pkgutil
import sys
import typing
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

import pytest
import tasks_core.engines
import tasks_core.types

PACKAGES = ("tasks_core", "tasks_fastapi", "tasks_testing")


def public_modules(package: str) -> Iterator[str]:
    """Name the package and each module in it that has no underscore before any part of its name."""
    yield package
    path = importlib.import_module(package).__path__
    for module in pkgutil.walk_packages(path, f"{package}."):
        if "._" not in module.name:
            yield module.name


MODULES = [module for package in PACKAGES for module in public_modules(package)]


def offered(module: ModuleType) -> set[str]:
    """
    Find what a reader of the source would take for public: what it defines without an underscore.

    What a package imports, it offers, unless that is from the standard library. What another module imports, it uses.
    """
    names: set[str] = set()
    for node in statements(ast.parse(inspect.getsource(module))):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
            case ast.ImportFrom(module=origin, level=level, names=aliases) if hasattr(module, "__path__"):
                if level or (origin or "").partition(".")[0] not in sys.stdlib_module_names:
                    names.update(alias.asname or alias.name for alias in aliases)
    return {name for name in names if name[0] != "_"}


def statements(tree: ast.Module) -> Iterator[ast.stmt]:
    """List the statements of a module, also those that only a type checker sees: a package may import lazily."""
    for node in tree.body:
        yield from node.body if isinstance(node, ast.If) else [node]


@pytest.mark.parametrize("name", MODULES)
def test_all_is_what_is_public(name: str) -> None:
    module = importlib.import_module(name)
    names = getattr(module, "__all__", ())
    assert isinstance(names, tuple)
    assert set(names) == offered(module)
    assert [public for public in names if not hasattr(module, public)] == []


def annotated(name: str, value: object) -> Iterator[tuple[str, Any]]:
    """List a public function, or a public class and its public methods, with their full names."""
    if isinstance(value, FunctionType):
        yield name, value
    if not inspect.isclass(value):
        return
    yield name, value
    for attribute, member in vars(value).items():
        function = getattr(member, "fget", None) or getattr(member, "__func__", member)
        public = attribute[0] != "_" or (attribute == "__init__" and function.__module__ == value.__module__)
        if isinstance(function, FunctionType) and public:
            yield f"{name}.{attribute}", function


ANNOTATED = [
    pytest.param(value, id=name)
    for module in MODULES
    for public in getattr(importlib.import_module(module), "__all__", ())
    for name, value in annotated(f"{module}.{public}", getattr(importlib.import_module(module), public))
]


@pytest.mark.parametrize("value", ANNOTATED)
def test_annotations_resolve(value: Any) -> None:
    # Names that a module imports for type checkers only are public names all the same: of the package, or of the core.
    package = importlib.import_module(value.__module__.partition(".")[0])
    hints = typing.get_type_hints(
        value, localns=vars(tasks_core.engines) | vars(tasks_core.types) | vars(tasks_core) | vars(package)
    )
    if isinstance(value, FunctionType):
        assert set(hints) >= set(inspect.signature(value).parameters) - {"self", "cls"}
        assert "return" in hints


@pytest.mark.parametrize("value", ANNOTATED)
def test_public_things_say_what_they_do(value: Any) -> None:
    owner, _, name = value.__qualname__.rpartition(".")
    is_property = owner and isinstance(vars(getattr(sys.modules[value.__module__], owner)).get(name), property)
    if name == "__init__" or name.startswith("test_") or is_property or inspect.getdoc(value):
        return
    pytest.fail(f"{value.__qualname__} has no docstring")

"""
No package reaches into another by private attributes, and importing a package loads only what it needs.

What may be imported is checked elsewhere: the direction by import-linter and what is declared by deptry
(`hatch run types`), late imports and private names by ruff (`hatch run check`).
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

PACKAGES = ("tasks_core", "tasks_fastapi", "tasks_testing")
# An engine uses other distributions than the rest of its package, and only public names of that.
LAYERS = ("tasks_core", "tasks_core.engines", "tasks_fastapi", "tasks_testing")

for_each_layer = pytest.mark.parametrize("layer", LAYERS)
for_each_package = pytest.mark.parametrize("package", PACKAGES)


def _folder(layer: str) -> Path:
    found = find_spec(layer)
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


def sources(layer: str) -> dict[str, ast.Module]:
    """Parse all modules of a layer, by their names in it."""
    folder = _folder(layer)
    inner = [_folder(other) for other in LAYERS if other.startswith(f"{layer}.")]
    paths = [path for path in sorted(folder.rglob("*.py")) if not any(path.is_relative_to(other) for other in inner)]
    return {".".join(path.relative_to(folder).with_suffix("").parts): ast.parse(path.read_text()) for path in paths}


def defined_names(tree: ast.AST) -> Iterator[str]:
    """List the names that a module gives to its own functions, classes, variables, attributes and slots."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Name(id=name, ctx=ast.Store()) | ast.alias(name=name):
                yield name
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                yield name
            case ast.Assign(targets=[ast.Name(id="__slots__")], value=ast.Tuple(elts=slots)):
                yield from (
                    slot.value for slot in slots if isinstance(slot, ast.Constant) and isinstance(slot.value, str)
                )


def used_attributes(tree: ast.AST) -> Iterator[str]:
    """List the attributes that a module reads or writes, also those that it names in a string."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="sys"), attr="_getframe" | "_current_frames"):
                pass  # documented, in spite of their names
            case ast.Attribute(attr="_name_" | "_value_"):
                pass  # documented, of enums
            case ast.Attribute(attr=name):
                yield name
            case ast.Call(
                func=ast.Name(id="getattr" | "setattr" | "hasattr"), args=[_, ast.Constant(value=str(name)), *_]
            ):
                yield name


def foreign_attributes(trees: dict[str, ast.Module]) -> Iterator[str]:
    """Find underscore attributes that no module of the layer defines, because another layer owns them."""
    own = {name for tree in trees.values() for name in defined_names(tree)}
    for module, tree in trees.items():
        for name in used_attributes(tree):
            if name.startswith("_") and not name.endswith("__") and name not in own:
                yield f"{module} uses {name} of another layer"


@for_each_layer
def test_no_private_attribute_of_another_layer(layer: str) -> None:
    assert list(foreign_attributes(sources(layer))) == []


@pytest.mark.parametrize(
    "source",
    [
        "task._state",
        "app.router._startup = None",
        "getattr(task, '_state')",
        "scope._shielded()",
        "import anyio._core\nanyio._core.run()",
    ],
)
def test_a_private_attribute_is_found(source: str) -> None:
    assert len(list(foreign_attributes({"_app": ast.parse(source)}))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "class A:\n    __slots__ = ('_b',)\na._b",
        "class A:\n    def _b(self): ...\na._b()",
        "self._b = 1\nother._b",
        "sys._getframe(1)",
        "a.__class__",
    ],
)
def test_an_attribute_of_its_own_is_let_through(source: str) -> None:
    assert list(foreign_attributes({"_app": ast.parse(source)})) == []


def loaded_by(statement: str) -> set[str]:
    """Run a statement in a new interpreter, and name the top-level modules that it has loaded."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_importing_tasks_core_loads_nothing_but_anyio() -> None:
    anyio_and_what_it_needs = loaded_by("import anyio.from_thread, anyio.lowlevel, anyio.to_thread")
    assert loaded_by("import tasks_core") - anyio_and_what_it_needs - sys.stdlib_module_names == {"tasks_core"}


@for_each_package
def test_importing_a_package_does_not_load_trio(package: str) -> None:
    assert "trio" not in loaded_by(f"import {package}")

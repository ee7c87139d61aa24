"""The reference is complete: each public name has its place, and only those."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path

import pytest
import tasks_core.engines

REFERENCE = Path(__file__).parents[1] / "content" / "reference"

# Given again by tasks_fastapi for convenience, and described where they come from.
AGAIN = {
    "tasks_fastapi": {"Provided", "Task", "TaskConfig", "TaskErrorHandler", "retry"},
    "tasks_core.exceptions": {*tasks_core.__all__, *tasks_core.engines.__all__},
}


@pytest.mark.parametrize(
    "package",
    [
        "tasks_core",
        "tasks_core.engines",
        "tasks_core.engines.procrastinate",
        "tasks_core.exceptions",
        "tasks_core.frameworks",
        "tasks_core.testing",
        "tasks_core.types",
        "tasks_fastapi",
        "tasks_testing",
        "tasks_testing.engine_contract",
    ],
)
def test_every_public_name_is_described(package: str) -> None:
    page = (REFERENCE / f"{package.partition('.')[0]}.md").read_text(encoding="utf-8")
    described = re.findall(rf"^::: {package}\.(\w+)$", page, re.MULTILINE)
    public = set(importlib.import_module(package).__all__) - AGAIN.get(package, set())
    assert sorted(described) == sorted(public)


def test_the_root_of_the_core_can_be_held_in_mind() -> None:
    assert len(tasks_core.__all__) <= 45


def test_members_without_a_docstring_are_shown() -> None:
    """A field or a member of an enumeration is public whether its docstring exists or not."""
    site = tomllib.loads((REFERENCE.parents[1] / "zensical.toml").read_text(encoding="utf-8"))
    options = site["project"]["plugins"]["mkdocstrings"]["handlers"]["python"]["options"]
    assert options["show_if_no_docstring"] is True
    assert options["filters"] == ["!^_"]

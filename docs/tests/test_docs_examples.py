"""
Every Python block of the documentation is run, and what it says it prints is what it prints.

Renew the output in the pages with `pytest docs/tests --update-examples`.
"""

from __future__ import annotations

import ast
import asyncio
import builtins
import logging
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tasks_fastapi
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pytest_examples import CodeExample, EvalExample, find_examples
from tasks_core._durable.registry import registry
from tasks_core._observer import _observers

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *(page for pattern in ("packages/*/README.md", "docs/content/**/*.md") for page in sorted(ROOT.glob(pattern))),
    # Not from the sources: the suite also runs against what is installed from the wheels.
    *sorted(Path(tasks_fastapi.__path__[0]).glob(".agents/skills/*/SKILL.md")),
]


def is_included(block: CodeExample) -> bool:
    """Return whether a block is generated from a file, which has tests of its own."""
    lines = block.path.read_text(encoding="utf-8").splitlines()
    fence = next(line for line in range(block.start_line - 1, -1, -1) if lines[line].lstrip().startswith("```"))
    return lines[fence - 1].startswith("<!-- include: ")


# A list, because pytest counts the parameters of a test before it runs.
EXAMPLES = [block for block in list(find_examples(*PAGES)) if not is_included(block)]

# Examples print, have parameters only to be called with them, wait for an event loop to take a turn, and import
# optional packages at the top. A page about moving shows bare `create_task` statements.
IGNORED = ["ARG001", "ARG002", "ASYNC115", "RUF006", "T201", "TID253"]


def name(example: CodeExample) -> str:
    return f"{os.path.relpath(example.path, ROOT)}:{example.start_line}"


@pytest.fixture(autouse=True)
def logging_of_its_own() -> Iterator[None]:
    """A block may configure logging; the next one starts afresh."""
    names = (None, "tasks_core", "tasks_fastapi", "shop")
    loggers = {one: (one.handlers[:], one.level, one.propagate) for one in map(logging.getLogger, names)}
    yield
    for logger, (handlers, level, propagate) in loggers.items():
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate


@pytest.fixture(autouse=True)
def observers_of_its_own() -> Iterator[None]:
    """A block may observe all tasks of the process until its end, which comes here."""
    before = _observers._entries
    yield
    _observers._replace(before)


@pytest.fixture(autouse=True)
def durable_functions_of_its_own() -> Iterator[None]:
    """A worker of a later test must not run the functions of a block, nor submit its periodic ones."""
    before = registry._functions.copy()
    yield
    registry._functions.clear()
    registry._functions.update(before)


@pytest.fixture(autouse=True)
def event_loop_of_its_own() -> Iterator[None]:
    """`Mangum()` takes the event loop of the thread; without one it would make one, and leave it open."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()


@pytest.mark.parametrize("example", EXAMPLES, ids=name)
def test_block_runs_and_prints_what_it_says(
    example: CodeExample, eval_example: EvalExample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The block stands alone, has no unused names, and its `#>` lines are its output."""
    eval_example.set_config(line_length=100, target_version="py310", ruff_ignore=IGNORED)
    if not eval_example.update_examples:
        eval_example.lint_ruff(example)
    printed = Printed(example.module_name)
    monkeypatch.setattr(builtins, "print", printed)
    names = run(example, eval_example)
    expected = with_output(example.source, printed.by_line)
    if eval_example.update_examples and expected != example.source:
        example.source = expected
        eval_example.to_update.append(example)
    assert example.source == expected
    check_applications(names)


class Printed:
    """Stands in for `print`, and keeps what each line of the block has printed."""

    def __init__(self, block: str) -> None:
        self._block = block
        self._print = print
        self.by_line: defaultdict[int, list[str]] = defaultdict(list)

    def __call__(self, *values: object, **options: Any) -> None:
        caller = sys._getframe(1)
        if Path(caller.f_code.co_filename).stem == self._block:
            self.by_line[caller.f_lineno] += " ".join(map(str, values)).splitlines()
        else:
            self._print(*values, **options)  # `traceback`, for one, prints what is logged


def with_output(source: str, by_line: dict[int, list[str]]) -> str:
    """Return the source with `#> ` and the output below each call of `print`, and none of what was there."""
    output = {
        node.end_lineno: [f"{' ' * node.col_offset}#> {text}" for text in by_line.get(node.lineno, [])]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "print"
    }
    lines = []
    for number, line in enumerate(source.splitlines(), 1):
        if not re.match(" *#> ", line):
            lines += [line, *output.get(number, [])]
    return "\n".join(lines) + "\n"


def run(example: CodeExample, eval_example: EvalExample) -> dict[str, Any]:
    """Run a block and return its global names, or fail with the line that raised."""
    try:
        return eval_example.run(example)
    except Exception as error:
        # Not the traceback itself: its frames are made up by pytest-examples, and pytest cannot always show them.
        traceback = error.__traceback__
        while traceback is not None and traceback.tb_next is not None:
            traceback = traceback.tb_next
        line = traceback.tb_lineno if traceback is not None else example.start_line
        message = f"{os.path.relpath(example.path, ROOT)}:{line}: {type(error).__name__}: {error}"
    pytest.fail(message, pytrace=False)


def check_applications(names: dict[str, Any]) -> None:
    """Start each application that a block makes, and have FastAPI look at every route: annotations are resolved."""
    for app in {id(value): value for value in names.values() if isinstance(value, FastAPI)}.values():
        app.middleware_stack = None  # the block may have served requests already
        with TestClient(app) as client:
            assert client.get("/openapi.json").status_code == 200


def test_every_page_is_looked_at() -> None:
    """The patterns above find the pages; else nothing would be tested."""
    assert {"README.md", "SKILL.md", "index.md", "first_steps.md"} <= {page.name for page in PAGES}
    assert len(EXAMPLES) > 50

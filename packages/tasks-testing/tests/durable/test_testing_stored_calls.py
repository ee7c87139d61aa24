"""Durable calls of a release are stored as files, and the next release is checked against them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tasks_core import RetryPolicy, TaskScheduler, durable
from tasks_core.engines import DurableCall
from tasks_testing import InMemoryEngine, check_calls, write_calls


@dataclass
class Order:
    id: int
    total: int = 0


@durable(name="stored_charge", aliases=("stored_pay",), retry=RetryPolicy(attempts=3))
async def charge(order: Order, note: str = "") -> None: ...


@durable(name="stored_print")
def print_label(order_id: int, *copies: int) -> None: ...


CHARGE = DurableCall("stored_charge", {"order": {"id": 1, "total": 2}}, "key")
pytestmark = pytest.mark.anyio


async def submitted(*calls: Callable[[TaskScheduler], object]) -> list[DurableCall]:
    engine = InMemoryEngine()
    async with TaskScheduler(engine=engine) as scheduler:
        for call in calls:
            call(scheduler)
    return engine.calls


async def test_what_was_submitted_is_written_and_checked(tmp_path: Path) -> None:
    calls = await submitted(
        lambda scheduler: scheduler.schedule(print_label, 7, 1, 2),
        lambda scheduler: scheduler.schedule(charge, Order(1)),
    )
    write_calls(tmp_path / "calls" / "1.0.0.json", calls)
    check_calls(tmp_path / "calls")
    check_calls(tmp_path / "calls" / "1.0.0.json")
    written = json.loads((tmp_path / "calls" / "1.0.0.json").read_text())
    assert [entry["name"] for entry in written] == ["stored_charge", "stored_print"]
    assert written[0]["args"] == {"order": {"id": 1, "total": 0}}
    assert written[0]["retry"]["attempts"] == 3
    assert written[1]["retry"]["attempts"] == 10, "the default"
    assert written[1]["args"] == {"order_id": 7, "copies": [1, 2]}


def test_the_same_calls_make_the_same_file(tmp_path: Path) -> None:
    other = DurableCall("stored_print", {"order_id": 1}, "key")
    write_calls(tmp_path / "a.json", [CHARGE, other])
    write_calls(tmp_path / "b.json", [other, replace(CHARGE, idempotency_key="b", headers={"x": "y"}), CHARGE])
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_a_file_is_replaced(tmp_path: Path) -> None:
    write_calls(tmp_path / "a.json", [replace(CHARGE, name="stored_gone")])
    write_calls(tmp_path / "a.json", [CHARGE])
    check_calls(tmp_path)


def test_a_former_name_is_known(tmp_path: Path) -> None:
    write_calls(tmp_path / "a.json", [replace(CHARGE, name="stored_pay")])
    check_calls(tmp_path)


@pytest.mark.parametrize(
    "call, reason",
    [
        (
            DurableCall("stored_gone", {"order": "secret"}, "key"),
            "stored_gone(order)\n    no durable function has this name in this process. If it was renamed, write "
            "@durable(aliases=('stored_gone',)); otherwise import its module in the test",
        ),
        (DurableCall("stored_charge", {"order": "secret"}, "key"), "has a value that the annotation does not allow"),
        (DurableCall("stored_charge", {}, "key"), "'order' has no default, and the call has no value for it"),
        (
            DurableCall("stored_charge", {"order": {"id": 1}, "secret_": "secret"}, "key"),
            "'secret_', which is not one of its parameters",
        ),
    ],
    ids=["name", "value", "new parameter", "lost parameter"],
)
def test_a_call_that_cannot_be_run_is_named_without_arguments(tmp_path: Path, call: DurableCall, reason: str) -> None:
    write_calls(tmp_path / "1.0.0.json", [call])
    write_calls(tmp_path / "1.1.0.json", [CHARGE])
    with pytest.raises(AssertionError) as failure:
        check_calls(tmp_path)
    message = str(failure.value)
    assert message.startswith("1 of 2 stored calls cannot be run by the functions of this release:\n  1.0.0.json: ")
    assert reason in message
    assert '"secret"' not in message
    assert "'secret'" not in message


def test_without_calls_there_is_nothing_to_write(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there are no calls\. Submit durable tasks, then pass"):
        write_calls(tmp_path / "a.json", [])
    assert not (tmp_path / "a.json").exists()


def test_a_check_of_nothing_fails(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there are no stored calls\. Write them in a test of the release"):
        check_calls(tmp_path)
    with pytest.raises(ValueError, match=r"missing\.json' is not a file of write_calls"):
        check_calls(tmp_path / "missing.json")


@pytest.mark.parametrize(
    "content", ["", "[1]", "{}", '[{"name": "a"}]', '[{"name": "a", "args": {}, "retry": {"x": 1}}]']
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: Any) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=r"a\.json"):
        check_calls(tmp_path)

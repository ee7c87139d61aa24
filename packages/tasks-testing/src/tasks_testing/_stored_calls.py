"""The durable calls of a release as a file, so that a test of the next release finds those that it could not run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any

from tasks_core import RetryPolicy
from tasks_core.engines import DurableCall, UnknownTaskError
from tasks_core.exceptions import ArgumentCodecError, InvalidConfigError
from tasks_core.testing import durable_function

from . import _refusals
from ._messages import stored_calls


def write_calls(path: str | PathLike[str], calls: Iterable[DurableCall]) -> None:
    """
    Write durable calls to a JSON file, as an engine stores them, for `check_calls()` in a later release.

    The file has the name of each function, the arguments and the retry policy, in the order of the names. Calls that
    are equal are written once. Keys and headers are left out, because they differ in each run, so that the same calls
    make the same file. A file that exists is replaced; its folder is made.

    Args:
        path: The file, which is named after the release: `stored_calls/1.4.0.json`.

        calls: As in `tasks_recorder.durable_calls`. Pass calls with each combination of arguments that matters, such as
            with and without an optional one.

    Raises:
        ValueError: there are no calls.
    """
    entries = {json.dumps(_as_json(call), sort_keys=True) for call in calls}
    if not entries:
        raise ValueError(_refusals.no_calls_to_write())
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = sorted(map(json.loads, entries), key=lambda entry: (entry["name"], json.dumps(entry)))
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_calls(path: str | PathLike[str]) -> None:
    """
    Fail if a call that `write_calls()` stored in an earlier release cannot be run by the functions of this one.

    Calls are stored in the queue while a new release is deployed. A worker of the new release cannot run them if the
    function has another name, lost a parameter, has a new parameter without a default, or an annotation does not allow
    the value any more. No function is called. The modules of the durable functions must have been imported.

    Args:
        path: A file, or a folder of which each `.json` file is checked.

    Raises:
        AssertionError: calls cannot be run. The message names each with the reason and the file, without arguments.
        ValueError: there is no file, or a file is not one of `write_calls()`.
    """
    path = Path(path)
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    calls = [(file, call) for file in files for call in _read(file)]
    if not calls:
        raise ValueError(_refusals.no_stored_calls(path))
    findings = [(file.name, call.name, tuple(call.args), reason) for file, call in calls if (reason := _reason(call))]
    if findings:
        raise AssertionError(stored_calls.cannot_be_run(findings, len(calls)))


def _as_json(call: DurableCall) -> dict[str, Any]:
    return {
        "name": call.name,
        "args": dict(call.args),
        "retry": None if call.retry is None else call.retry.as_json(),
    }


def _read(file: Path) -> Iterator[DurableCall]:
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(entries, list):
            raise TypeError
        for entry in entries:
            retry = None if entry["retry"] is None else RetryPolicy.from_json(entry["retry"])
            yield DurableCall(entry["name"], entry["args"], "stored", retry=retry)
    except (OSError, ValueError, LookupError, TypeError, InvalidConfigError) as error:
        raise ValueError(_refusals.not_stored_calls(file, error)) from None


def _reason(call: DurableCall) -> str | None:
    """Return why a worker of this release could not run the call."""
    try:
        durable_function(call.name).codec.decode(call.args)
    except UnknownTaskError:
        return stored_calls.unknown_function(call.name)
    except ArgumentCodecError as error:
        return str(error)
    return None

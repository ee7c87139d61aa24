"""Values as JSON text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from tasks_core.exceptions import InvalidEventError

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"
"""The values that JSON has. A value that it cannot represent is an error at the call."""

JsonInput: TypeAlias = Mapping[str, Any] | Sequence[Any] | str | int | float | bool | None
"""What is accepted as JSON: dicts, lists and tuples, and what JSON has in them."""

LIMIT = 64 * 1024
"""Bytes that an event or a progress value may have as JSON."""


def json_text(value: JsonInput, call: str) -> bytes:
    """
    Return *value* as JSON in one line; *call* begins the message of the error.

    Raises:
        InvalidEventError: *value* is not JSON of at most 64 KiB.
    """
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError):
        text = None
    if text is None or len(text) > LIMIT:
        problem = f"a {type(value).__qualname__} that JSON does not have" if text is None else f"{len(text):,} bytes"
        raise InvalidEventError(
            f"{call} was given {problem}. It takes JSON of at most 64 KiB: texts, finite numbers, true, false, null, "
            "lists, and dicts with texts as keys"
        )
    return text

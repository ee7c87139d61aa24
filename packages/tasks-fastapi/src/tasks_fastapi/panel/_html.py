"""HTML from Python: every text is escaped, unless it is HTML already."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TypeAlias


class Html(str):
    """Text that is HTML."""

    __slots__ = ()


Child: TypeAlias = "str | int | float | Iterable[Child] | None"
"""What a tag may have in it: texts, numbers, other tags, nothing, or several of these."""

_VOID = frozenset(("br", "input", "link", "meta"))


def tag(name: str, /, *children: Child, **attributes: str | int | bool | None) -> Html:
    """
    Return an element. `class_` is the attribute `class`, `data_label` is `data-label`; `True` is an attribute alone.

    An attribute that is `None` or `False` is left out.
    """
    text = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _VOID:
        return Html(f"<{name}{text}>")
    return Html(f"<{name}{text}>{inside(children)}</{name}>")


def inside(child: Child) -> Html:
    """Return what stands between two tags."""
    if child is None:
        return Html("")
    if isinstance(child, Html):
        return child
    if isinstance(child, (str, int, float)):
        return Html(escape(str(child)))
    return Html("".join(map(inside, child)))

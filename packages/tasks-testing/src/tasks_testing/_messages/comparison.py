"""What pytest shows when two lists of calls differ."""

from __future__ import annotations

from tasks_testing._recording.call import Call, show_difference

# How many lines are shown of each kind.
_MOST_LINES = 10


def compare_calls(left: object, right: object) -> list[str] | None:
    """Explain `assert view.calls == [...]`; return `None` if these are no lists of calls."""
    if not isinstance(left, list) or not isinstance(right, list):
        return None
    if not left + right or not all(isinstance(item, Call) for item in left + right):
        return None
    extra: list[Call[object]] = list(left)
    missing: list[Call[object]] = []
    for expected in right:
        if expected in extra:
            extra.remove(expected)
        else:
            missing.append(expected)
    lines = [f"{len(left)} calls == {len(right)} calls"]
    if not missing and not extra:
        lines += ["the same calls in another order, recorded:", *(f"  {call!r}" for call in left[:_MOST_LINES])]
    for expected in missing[:_MOST_LINES]:
        lines.append(f"missing: {expected!r}")
        lines += [f"         {difference}" for difference in _nearest_differences(expected, extra)]
    lines += [f"extra:   {call!r}" for call in extra[:_MOST_LINES]]
    omitted = len(missing[_MOST_LINES:]) + len(extra[_MOST_LINES:])
    return [*lines, f"and {omitted} more"] if omitted else lines


def _nearest_differences(expected: Call[object], candidates: list[Call[object]]) -> list[str]:
    found = [each for call in candidates if (each := expected.differences(call)) is not None]
    nearest = min(found, key=len, default={})
    return [show_difference(name, *values) for name, values in nearest.items()]

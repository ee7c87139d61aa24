"""What is wrong with stored calls of an earlier release."""

from __future__ import annotations

from collections.abc import Sequence


def cannot_be_run(findings: Sequence[tuple[str, str, tuple[str, ...], str]], total: int) -> str:
    """Return the message about calls: the file, the name, the parameters and the reason of each."""
    lines = [f"{len(findings)} of {total} stored calls cannot be run by the functions of this release:"]
    for file, name, parameters, reason in findings:
        lines += [f"  {file}: {name}({', '.join(parameters)})", f"    {reason}"]
    lines.append(
        "A queue has such calls while this release is deployed. Keep the function able to run them: give a new "
        "parameter a default, put an old name into aliases=, and let the annotation allow the old values too"
    )
    return "\n".join(lines)


def unknown_function(name: str) -> str:
    return (
        f"no durable function has this name in this process. If it was renamed, write @durable(aliases=({name!r},)); "
        "otherwise import its module in the test"
    )

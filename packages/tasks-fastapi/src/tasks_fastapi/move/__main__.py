"""The command `python -m tasks_fastapi.move`."""

from __future__ import annotations

import argparse
import difflib
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

try:
    import libcst  # whether it is installed decides which message the user gets
except ImportError:
    sys.stderr.write(
        "python -m tasks_fastapi.move needs libcst, which is an extra of tasks-fastapi. "
        "Install it: pip install 'tasks-fastapi[move]'\n"
    )
    raise SystemExit(2) from None

from ._decide import ASSUMPTIONS, Assumption, Plan, Report, decide
from ._project import Project
from ._rewrite import RewriteError, rewrite

_DESCRIPTION = """\
Rewrite fire-and-forget code as tasks: `asyncio.create_task(f(x))` statements, `background_tasks.add_task(f, x)` and
`background=BackgroundTask(f, x)` of responses. Without --write, no file is changed and the changes are shown as a diff.
A call whose meaning might change is left, and listed with the reason.
"""

_EPILOG = """\
exit codes:
  0  no file has to be changed, or --write has changed them
  1  files would be changed by --write
  2  the arguments are wrong, or libcst is not installed
  3  a file could not be read, parsed or written; the others were handled
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        "python -m tasks_fastapi.move",
        description=_DESCRIPTION,
        epilog=_EPILOG
        + "\n"
        + "\n".join(["assumptions:", *(f"  {name:8} {text}" for name, text in ASSUMPTIONS.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", metavar="PATH", nargs="+", type=Path, help="a Python file, or a folder of them")
    parser.add_argument("--write", action="store_true", help="change the files")
    parser.add_argument("--no-diff", action="store_true", help="list the calls only")
    parser.add_argument(
        "--assume",
        action="append",
        default=[],
        choices=list(ASSUMPTIONS),
        help="what you know about your code and the command cannot see; may be repeated",
    )
    options = parser.parse_args(arguments)
    for path in options.paths:
        if not path.exists():
            parser.error(f"PATH is {str(path)!r}, which does not exist. Allowed are Python files and folders")
        if path.is_file() and path.suffix != ".py":
            parser.error(f"PATH is {str(path)!r}, which is no Python file. Allowed are files named *.py and folders")
    return _Command(options.write, not options.no_diff, options.assume).run(options.paths)


class _Command:
    def __init__(self, write: bool, diff: bool, assume: Sequence[Assumption]) -> None:
        self._write = write
        self._diff = diff
        self._assume = assume
        self._failures: list[str] = []
        self._changed = 0

    def run(self, paths: Sequence[Path]) -> int:
        project = Project.read(list(paths))
        self._failures = [f"{path}: {reason}" for path, reason in project.unreadable]
        lines: list[tuple[str, Report]] = []
        for module in project.chosen:
            try:
                reports = self._apply(decide(project, module, self._assume))
            except RecursionError:
                self._failures.append(f"{module.shown}: it is nested too deeply")
                continue
            lines.extend((module.shown, report) for report in reports)
        self._list(lines)
        if self._failures:
            return 3
        return 1 if self._changed and not self._write else 0

    def _apply(self, plan: Plan) -> list[Report]:
        """Change the file or show how it would change; return what was done to each call."""
        if not plan.edits:
            return plan.reports
        module = plan.module
        try:
            source = rewrite(plan)
            if self._write:
                _replace(module.path, module.source, source)
        except (RewriteError, libcst.ParserSyntaxError) as error:
            return [_left(report, f"nothing in this file is changed: {error}") for report in plan.reports]
        except OSError as error:
            self._failures.append(f"{module.shown}: {error.strerror or error}")
            return [_left(report, "the file could not be written") for report in plan.reports]
        self._changed += 1
        if self._diff and not self._write:
            before, after = (
                text.decode("utf-8", "replace").splitlines(keepends=True) for text in (module.source, source)
            )
            for line in difflib.unified_diff(before, after, module.shown, module.shown):
                sys.stdout.write(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n")
        return plan.reports

    def _list(self, lines: Sequence[tuple[str, Report]]) -> None:
        out = sys.stdout.write
        moved = [(path, report) for path, report in lines if report.moved]
        left = [(path, report) for path, report in lines if report.left]
        if moved:
            out("\nMoved:\n" if self._write else "\nWould be moved:\n")
            for path, report in moved:
                out(f"  {path}:{report.line}: {report.kind} -> {report.moved}\n")
        if left:
            out("\nLeft:\n")
            for path, report in left:
                out(f"  {path}:{report.line}: {report.kind}: {report.left}\n")
        if self._failures:
            out("\nNot handled:\n")
            for failure in self._failures:
                out(f"  {failure}\n")
        verb, files = ("moved", "changed") if self._write else ("would be moved", "would be changed with --write")
        out(f"\n{_count(len(lines), 'call')}: {len(moved)} {verb}, {len(left)} left. ")
        out(f"{_count(self._changed, 'file')} {files}.\n")
        if moved:
            out("The application needs add_tasks(app), once.\n")
        if any("current_tasks()" in report.moved for _, report in moved):
            out("current_tasks() needs a request, a task or a lifespan around it, and raises an error elsewhere.\n")
        if any(report.kind not in ("create_task", "ensure_future") for _, report in moved):
            out("Tasks of add_task() start when the dependencies have closed, and TestClient does not wait for them.\n")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _left(report: Report, reason: str) -> Report:
    return report if report.left else Report(report.line, report.kind, left=reason)


def _replace(path: Path, before: bytes, after: bytes) -> None:
    """Replace the content of a file at once, so that a crash leaves the old or the new one."""
    if path.read_bytes() != before:
        raise OSError("the file has changed since it was read")
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(after)
        shutil.copymode(path, name)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


if __name__ == "__main__":
    raise SystemExit(main())

"""
Writes the code and output that the pages include into the pages: `hatch run docs:generate`.

A page names a file of `docs/examples` or `docs/tests`, or a section of it, in a comment above a block:

    <!-- include: first_steps.py -->
    <!-- include: output/log_lines.txt:failed -->

Everything in the block below the comment is generated, so that a page is complete wherever it is read. A section of a
file lies between two lines with `--8<-- [start:failed]` and `--8<-- [end:failed]`.
"""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent

DOCS = Path(__file__).parent
FOLDERS = (DOCS / "examples", DOCS / "tests")
PAGES = [DOCS.parent / "README.md", *sorted(DOCS.glob("content/**/*.md"))]

INCLUDE = re.compile(r"^<!-- include: ([\w./]+)(?::(\w+))? -->\n(```+[^\n]*\n).*?^(```+)$", re.MULTILINE | re.DOTALL)
SECTION_MARK = re.compile(r"^[#/ ]*--8<-- \[\w+:\w+\]\n\n*", re.MULTILINE)


def main() -> None:
    for page in PAGES:
        page.write_text(with_includes(page.read_text(encoding="utf-8")), encoding="utf-8")


def with_includes(page: str) -> str:
    """Return the text of a page with the current text of what it includes."""
    return INCLUDE.sub(_block, page)


def included_text(name: str, section: str | None = None) -> str:
    """
    Return the text of a file, or of a section of it, without the marks of sections.

    Raises:
        LookupError: there is no such file or section.
    """
    file = next((folder / name for folder in FOLDERS if (folder / name).is_file()), None)
    if file is None:
        raise LookupError(f"{name} is neither in docs/examples nor in docs/tests")
    text = file.read_text(encoding="utf-8")
    if section is not None:
        marks = (rf"^[#/ ]*--8<-- \[{mark}:{section}\]\n" for mark in ("start", "end"))
        found = re.search("(.*?)".join(marks), text, re.MULTILINE | re.DOTALL)
        if found is None:
            raise LookupError(f"{name} has no section {section}")
        text = dedent(found[1])
    return SECTION_MARK.sub("", text).strip("\n") + "\n"


def _block(found: re.Match[str]) -> str:
    name, section, fence, end = found.groups()
    heading = f"<!-- include: {name}{f':{section}' if section else ''} -->\n"
    return f"{heading}{fence}{included_text(name, section)}{end}"


if __name__ == "__main__":
    main()

"""The page about moving tests: both sides of its diffs run, and what it says about faults is so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "content" / "move" / "tests.md"
DIFF = re.compile(r"^<!-- (\w+\.py) -->\n```diff\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SIDES = {"before": "- ", "after": "+ "}


def write_side(side: str, folder: Path) -> None:
    """Write the files that the page shows, as they are on one side of the diffs."""
    for name, diff in DIFF.findall(PAGE.read_text(encoding="utf-8")):
        kept = [line[1:] for line in diff.splitlines(keepends=True) if line[0] in SIDES[side]]
        if kept:
            (folder / name).write_text("".join(kept), encoding="utf-8")


def run(folder: Path) -> dict[str, int]:
    """Run the tests of a folder; return how many passed, failed and so on."""
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\npythonpath = .\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    summary = done.stdout.strip().rpartition("\n")[2]
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|errors?)", summary)}
    assert counts, done.stdout + done.stderr
    return counts


@pytest.mark.parametrize("side, tests", [("before", 8), ("after", 9)])
def test_all_pass(side: str, tests: int, tmp_path: Path) -> None:
    write_side(side, tmp_path)
    assert run(tmp_path) == {"passed": tests}


@pytest.mark.parametrize("side, counts", [("before", {"passed": 8}), ("after", {"failed": 5, "passed": 4})])
def test_the_tests_after_find_a_renamed_parameter(side: str, counts: dict[str, int], tmp_path: Path) -> None:
    write_side(side, tmp_path)
    app = tmp_path / "app.py"
    text = app.read_text(encoding="utf-8")
    assert text.count("send_welcome(email: str, name: str)") == 1
    app.write_text(text.replace("send_welcome(email: str", "send_welcome(address: str"), encoding="utf-8")
    assert run(tmp_path) == counts


def test_each_line_belongs_to_a_side() -> None:
    """A line that begins with another character would be lost."""
    page = PAGE.read_text(encoding="utf-8")
    assert len(DIFF.findall(page)) == page.count("```diff\n") == 9
    for _, diff in DIFF.findall(page):
        assert {line[0] for line in diff.splitlines()} <= {"-", "+", " "}

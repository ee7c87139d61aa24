"""The page about engines: its tests pass with an engine that keeps the contract, and say which rule another breaks."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[1] / "content" / "design" / "engines.md"


def run(engine: str, folder: Path) -> str:
    """Run the tests of the page with an engine; return what pytest prints."""
    (tests,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert tests.count("return InMemoryEngine()") == 1
    (folder / "test_engine.py").write_text(engine + tests.replace("return InMemoryEngine()", "return MyEngine()"))
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    command = [sys.executable, "-m", "pytest", "-q", "-rsf", "-p", "no:cacheprovider", "-p", "no:asyncio", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False).stdout


def test_an_engine_that_keeps_the_contract_passes(tmp_path: Path) -> None:
    output = run("from tasks_testing import InMemoryEngine as MyEngine\n", tmp_path)
    assert re.search(r"^\d+ passed, \d+ skipped in ", output, re.MULTILINE), output
    skipped = set(re.findall(r"override (\w+)", output))
    assert skipped == {"transaction", "outage", "kill_worker_with"}, output


FORGETFUL = """
from dataclasses import replace
from uuid import uuid4
from tasks_testing import InMemoryEngine


class MyEngine(InMemoryEngine):
    async def submit(self, call, /, *, transaction=None):
        return await super().submit(replace(call, idempotency_key=str(uuid4())), transaction=transaction)


"""


def test_an_engine_that_forgets_keys_fails_the_test_that_the_page_names(tmp_path: Path) -> None:
    output = run(FORGETFUL, tmp_path)
    assert "`test_a_key_is_accepted_once`" in PAGE.read_text(encoding="utf-8")
    assert re.search(r"^FAILED .*::test_a_key_is_accepted_once\[", output, re.MULTILINE), output
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed)", output)}
    assert counts["passed"] > counts["failed"]

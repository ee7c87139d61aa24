"""The table of planted faults is what the list of them says."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMAND = ROOT / "packages" / "tasks-core" / "benchmarks" / "planted_faults.py"


def test_the_table_says_what_the_list_says() -> None:
    spec = spec_from_file_location("planted_faults_of_the_page", COMMAND)
    assert spec is not None
    assert spec.loader is not None
    command = module_from_spec(spec)
    sys.modules[spec.name] = command  # where its dataclass looks for itself
    spec.loader.exec_module(command)
    page = (ROOT / "docs" / "content" / "design" / "invariants.md").read_text(encoding="utf-8")
    assert page.count("| Fault |") == 1
    assert page == command.with_table(page)

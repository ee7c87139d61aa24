"""
Drive the state machine of the test suite for long, with other examples each time.

    python packages/tasks-core/benchmarks/soak.py [--examples 300]

Every example has up to 40 steps, on asyncio, uvloop and trio. Exits non-zero with the shortest failing example, if
there is one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

MACHINE = Path(__file__).parents[1] / "tests" / "test_core_invariants.py"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=300)
    options = parser.parse_args()
    environment = os.environ | {"TASKS_CORE_SOAK": str(options.examples)}
    command = [sys.executable, "-m", "pytest", str(MACHINE), "-q", "-o", "faulthandler_timeout=600"]
    return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())

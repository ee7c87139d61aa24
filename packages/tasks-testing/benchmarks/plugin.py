"""
What the pytest plugin costs a run that does not use it.

    hatch run bench:plugin
    python packages/tasks-testing/benchmarks/plugin.py --rounds 100 --tests 5000

Each round runs pytest, in a process of its own, on tests that do nothing. Counted is the processor time of the plugin:
its import, as pytest imports plugins, and each of its hooks. Two runs of pytest with and without it differ by more than
it costs, so that a difference of whole runs shows nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from time import thread_time
from typing import Any

# Milliseconds that a run without a recorded test may pay.
BOUND = 5.0

PLUGIN = "pytest_tasks_testing"
_MEASURED = "milliseconds of the plugin:"

_seconds = 0.0


def _counted(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)  # pluggy asks for the names of the parameters
    def run(*args: Any) -> Any:
        global _seconds
        began = thread_time()
        try:
            return function(*args)
        finally:
            _seconds += thread_time() - began

    return run


# This module is itself a plugin, of the runs that it starts.
def pytest_addoption(parser: object, pluginmanager: Any) -> None:
    """Import the plugin, which also calls its own `pytest_addoption`, and count its hooks."""
    _counted(pluginmanager.import_plugin)(PLUGIN)
    plugin = pluginmanager.get_plugin(PLUGIN)
    for caller in pluginmanager.get_hookcallers(plugin):
        for hook in caller.get_hookimpls():
            if hook.plugin is plugin:
                hook.function = _counted(hook.function)


def pytest_unconfigure() -> None:
    print(_MEASURED, 1000 * _seconds)


def run(folder: Path) -> float:
    """Run the tests of a folder; return the milliseconds of the plugin."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    # Of plugins, only this one, and so no entry point that imports the plugin before it is counted.
    environment = os.environ | {"PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", Path(__file__).stem, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return float(done.stdout.rpartition(_MEASURED)[2])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="runs (20)")
    parser.add_argument("--tests", type=int, action="append", help="tests in a run; may be repeated (1 and 1000)")
    options = parser.parse_args()
    exceeded = False
    for tests in options.tests or (1, 1000):
        with TemporaryDirectory() as directory:
            folder = Path(directory)
            (folder / "pytest.ini").write_text("[pytest]\n")
            (folder / "test_nothing.py").write_text("".join(f"def test_{n}(): ...\n" for n in range(tests)))
            run(folder)  # compiles
            times = [run(folder) for _ in range(options.rounds)]
        median = statistics.median(times)
        exceeded |= median > BOUND
        print(
            f"a run of {tests} tests: median {median:.2f} ms, from {min(times):.2f} to {max(times):.2f} ms", flush=True
        )
    print(f"the bound of {BOUND:g} ms is {'exceeded' if exceeded else 'kept'}")
    return int(exceeded)


if __name__ == "__main__":
    sys.exit(main())

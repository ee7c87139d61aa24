"""
Plant one fault after the other into a copy of tasks-core, and find out which of the proofs notices.

    hatch run faults                             all of planted_faults.toml
    hatch run faults --only "one more task"      those whose name contains this
    hatch run faults --write                     store what was found

The proofs are the tests of the in-memory half on asyncio, the machine of Hypothesis, and the simulated event loops. A
proof that fails, or takes longer than its time, has found the fault. The command fails if a fault is found by none.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

CORE = Path(__file__).parents[1]
SOURCE = CORE / "src" / "tasks_core"
LIST = Path(__file__).with_name("planted_faults.toml")
TESTS = CORE / "tests"

# Seconds that a proof may take. A fault may make it wait indefinitely.
TIME = 300

NOT_IN_MEMORY = ("durable", "example", "invariants", "meta", "planted")


@dataclass(frozen=True)
class Fault:
    """One line of tasks-core, and what takes its place."""

    name: str
    file: str
    line: str
    becomes: str
    found_by: tuple[str, ...] = ()

    def plant(self, package: Path) -> str:
        """Return the text of the file with the fault in it."""
        lines = (package / self.file).read_text().splitlines(keepends=True)
        places = [number for number, line in enumerate(lines) if line.strip() == self.line]
        if len(places) != 1:
            raise LookupError(f"{self.name!r}: {self.file} has {len(places)} lines {self.line!r}. Find the line again")
        lines[places[0]] = lines[places[0]].replace(self.line, self.becomes)
        return "".join(lines)


def planted_faults() -> list[Fault]:
    """Return the faults of the list."""
    entries = tomllib.loads(LIST.read_text())["fault"]
    return [Fault(**{**entry, "found_by": tuple(entry.get("found_by", ()))}) for entry in entries]


def proofs() -> dict[str, list[str]]:
    """Return the command of each proof."""
    pytest = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--timeout=60"]
    tests = [str(p) for p in sorted(TESTS.glob("test_core_*.py")) if not any(part in p.name for part in NOT_IN_MEMORY)]
    simulated = [sys.executable, str(Path(__file__).with_name("simulated.py")), "--brief", "--runs", "150", "--kind"]
    return {
        "tests": [*pytest, "-k", "not uvloop and not trio", *tests],
        "machine": [*pytest, str(TESTS / "test_core_invariants.py")],
        "random": [*simulated, "random"],
        "pct": [*simulated, "pct"],
        "systematic": [*simulated, "systematic"],
    }


def fails(command: list[str], package: Path) -> bool:
    """Run a proof against the package in the folder; return whether it fails."""
    path = [str(package.parent), str(CORE.parent / "tasks-testing" / "src"), str(TESTS)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path), "PYTHONHASHSEED": "0"}
    process = subprocess.Popen(
        command,
        env=environment,
        cwd=CORE.parents[1],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return process.wait(TIME) != 0
    except subprocess.TimeoutExpired:
        return True
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def find(fault: Fault | None) -> tuple[str, ...]:
    """Return the proofs that fail with the fault, or without any."""
    with TemporaryDirectory() as folder:
        package = Path(folder) / "tasks_core"
        shutil.copytree(SOURCE, package, ignore=shutil.ignore_patterns("__pycache__"))
        if fault is not None:
            (package / fault.file).write_text(fault.plant(package))
        return tuple(name for name, command in proofs().items() if fails(command, package))


def write(found: dict[str, tuple[str, ...]]) -> None:
    """Store in the list what was found."""
    lines = [line for line in LIST.read_text().splitlines() if not line.startswith("found_by")]
    result: list[str] = []
    name = ""
    known = {fault.name: fault.found_by for fault in planted_faults()} | found
    for line in lines:
        result.append(line)
        if line.startswith("name = "):
            name = tomllib.loads(line)["name"]
        if line.startswith("becomes"):
            result.append(f"found_by = [{', '.join(f'{proof!r}' for proof in known[name])}]".replace("'", '"'))
    LIST.write_text("\n".join(result) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a part of the name")
    parser.add_argument("--write", action="store_true", help="store what was found in the list")
    options = parser.parse_args()
    # A shell that starts a command in the background makes it ignore Ctrl-C, and so would the tests that send it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if not options.only and (wrong := find(None)):
        print(f"without any fault, these fail: {', '.join(wrong)}")
        return 1
    found = {}
    for fault in planted_faults():
        if options.only in fault.name:
            began = time.monotonic()
            found[fault.name] = find(fault)
            by = ", ".join(found[fault.name]) or "NONE"
            print(f"{fault.name}: {by} ({time.monotonic() - began:.0f} s)", flush=True)
            if options.write:
                write(found)
    return int(not all(found.values()))


if __name__ == "__main__":
    sys.exit(main())

"""
Plant one fault after the other into a copy of tasks-core, and find out which of the proofs notices.

    hatch run faults                             all of planted_faults.toml; this takes an hour
    hatch run faults --only "one more task"      those whose name contains this
    hatch run faults --proof random              one proof; may be repeated
    hatch run faults --write                     store each result in the list, and the table in the page
    hatch run faults --write --missing           only what the list does not have yet, so that a run can be continued

The proofs are the tests of the in-memory half on asyncio, the machine of Hypothesis, and the simulated event loops. A
proof that fails, or takes longer than its time, has found the fault, and the line below says how. The command fails if
a fault is found by none.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

CORE = Path(__file__).parents[1]
SOURCE = CORE / "src" / "tasks_core"
LIST = Path(__file__).with_name("planted_faults.toml")
TESTS = CORE / "tests"
PAGE = CORE.parents[1] / "docs" / "content" / "design" / "invariants.md"

# Seconds that a proof may take, five times what it needs on a busy machine. A fault may make it wait indefinitely.
TIME = {"tests": 400, "machine": 150, "random": 75, "pct": 75, "systematic": 75}

PYTEST = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--timeout=60"]
NOT_IN_MEMORY = ("durable", "example", "invariants", "meta", "planted")


@dataclass(frozen=True)
class Fault:
    """One line of tasks-core, and what takes its place."""

    name: str
    file: str
    line: str
    becomes: str
    found_by: tuple[str, ...] = ()
    """The proofs that fail with it."""
    not_found_by: tuple[str, ...] = ()
    """The proofs that pass with it. One that is in neither has not been run."""

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
    proofs_of = ("found_by", "not_found_by")
    return [Fault(**(entry | {field: tuple(entry.get(field, ())) for field in proofs_of})) for entry in entries]


def proofs() -> dict[str, list[str]]:
    """Return the command of each proof."""
    tests = [str(p) for p in sorted(TESTS.glob("test_core_*.py")) if not any(part in p.name for part in NOT_IN_MEMORY)]
    simulated = [sys.executable, str(Path(__file__).with_name("simulated.py")), "--brief", "--runs", "150", "--kind"]
    return {
        "tests": [*PYTEST, "-k", "not uvloop and not trio", *tests],
        "machine": [*PYTEST, str(TESTS / "test_core_invariants.py")],
        "random": [*simulated, "random"],
        "pct": [*simulated, "pct"],
        "systematic": [*simulated, "systematic"],
    }


def failure_of(proof: str, package: Path) -> str | None:
    """Run a proof against the package in the folder; return how it fails, or `None` if it passes."""
    command = proofs()[proof]
    while (output := output_of_failure(command, package, TIME[proof])) is not None:
        failed = re.search(r"^FAILED (\S+).*", output, re.MULTILINE)
        if failed is None:
            named = re.search(r"^  \w+: .*", output, re.MULTILINE)
            return named[0].strip() if named else output.rstrip().rpartition("\n")[2]
        if output_of_failure([*PYTEST, failed[1]], package, TIME[proof]) is not None:
            return failed[0]
        # It fails in one run of two: the machine is busy, which is not the fault.
        command = [*command, "--deselect", failed[1]]
    return None


def output_of_failure(command: list[str], package: Path, seconds: float) -> str | None:
    """Run a command against the package in the folder; return its output if it fails, otherwise `None`."""
    path = [str(package.parent), str(CORE.parent / "tasks-testing" / "src"), str(TESTS)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path), "PYTHONHASHSEED": "0"}
    with TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=CORE.parents[1],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            if process.wait(seconds) == 0:
                return None
        except subprocess.TimeoutExpired:
            return f"it did not end within {seconds} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output.seek(0)
        return output.read()


def with_fault(fault: Fault | None, names: list[str]) -> dict[str, str | None]:
    """Run these proofs with the fault, or without any; return how each fails."""
    with TemporaryDirectory() as folder:
        package = Path(folder) / "tasks_core"
        shutil.copytree(SOURCE, package, ignore=shutil.ignore_patterns("__pycache__"))
        if fault is not None:
            (package / fault.file).write_text(fault.plant(package))
        return {name: failure_of(name, package) for name in names}


def write(fault: Fault) -> None:
    """Store in the list what was found, and in the page the table of the list."""
    head, separator, rest = LIST.read_text().partition(f'name = "{fault.name}"\n')
    own, *others = re.split(r"(?=\n\[\[fault\]\])", rest, maxsplit=1)
    lines = [line for line in own.splitlines() if "found_by = " not in line]
    for field, names in (("found_by", fault.found_by), ("not_found_by", fault.not_found_by)):
        lines.append(f"{field} = [" + ", ".join(f'"{name}"' for name in names) + "]")
    LIST.write_text(head + separator + "\n".join([*lines, ""]) + "".join(others))
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def with_table(page: str) -> str:
    """Return the text of the page with the table of the list."""
    return re.sub(r"^\| Fault \|.*?(?=\n\n)", lambda _: table(planted_faults()), page, flags=re.MULTILINE | re.DOTALL)


def table(faults: list[Fault]) -> str:
    """Return a table of Markdown: which proof finds which fault."""
    rows = [["Fault", *proofs()], ["---", *[":-:"] * len(proofs())]]
    for fault in faults:
        found = dict.fromkeys(fault.found_by, "yes") | dict.fromkeys(fault.not_found_by, "")
        rows.append([fault.name, *(found.get(proof, "?") for proof in proofs())])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a part of the name")
    parser.add_argument("--proof", choices=proofs(), action="append", help="one of the proofs; may be repeated (all)")
    parser.add_argument("--missing", action="store_true", help="leave out what the list has")
    parser.add_argument("--write", action="store_true", help="store what was found in the list and in the page")
    options = parser.parse_args()
    # A shell that starts a command in the background makes it ignore Ctrl-C, and so would the tests that send it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    names = options.proof or list(proofs())
    if not options.only:
        for name, failure in with_fault(None, names).items():
            if failure is not None:
                print(f"without any fault, {name} fails: {failure}")
                return 1
    unfound = False
    for fault in planted_faults():
        known = {*fault.found_by, *fault.not_found_by} if options.missing else set()
        wanted = [name for name in names if name not in known]
        if options.only not in fault.name or not wanted:
            continue
        began = time.monotonic()
        failures = with_fault(fault, wanted)
        found = [n for n in proofs() if failures.get(n, n in fault.found_by)]
        passed = [n for n in proofs() if n not in found and (n in failures or n in fault.not_found_by)]
        result = replace(fault, found_by=tuple(found), not_found_by=tuple(passed))
        print(f"{fault.name}: {', '.join(found) or 'NONE'} ({time.monotonic() - began:.0f} s)", flush=True)
        for name, failure in failures.items():
            print(f"  {name}: {failure or 'passes'}", flush=True)
        if options.write:
            write(result)
        unfound |= not found and len(passed) == len(proofs())
    return int(unfound)


if __name__ == "__main__":
    sys.exit(main())

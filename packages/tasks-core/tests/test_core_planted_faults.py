"""The list of planted faults fits the code, and each fault is found."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import tasks_core


def load_benchmark(name: str) -> ModuleType:
    spec = spec_from_file_location(name, Path(__file__).parents[1] / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


planted_faults = load_benchmark("planted_faults")
FAULTS = planted_faults.planted_faults()
PACKAGE = Path(tasks_core.__file__).parent


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_each_fault_can_be_planted(fault: planted_faults.Fault) -> None:  # type: ignore[name-defined]  # loaded above
    text = fault.plant(PACKAGE)
    assert text != (PACKAGE / fault.file).read_text()
    compile(text, fault.file, "exec")


def test_a_line_that_was_rewritten_is_named() -> None:
    fault = planted_faults.Fault("gone", "_phase.py", "no such line", "pass")
    with pytest.raises(LookupError, match=r"'gone': _phase\.py has 0 lines 'no such line'"):
        fault.plant(PACKAGE)


def test_each_fault_is_found_by_a_proof_that_exists() -> None:
    assert len(FAULTS) >= 20
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    for fault in FAULTS:
        assert fault.found_by, f"no proof finds {fault.name!r}: write a test that does, and run `hatch run faults`"
        known = [*fault.found_by, *fault.not_found_by]
        assert sorted(known) == sorted(planted_faults.proofs()), (
            f"{fault.name!r}: run `hatch run faults --missing --write`"
        )

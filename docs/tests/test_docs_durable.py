"""The example of a durable payment does what its page says."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "durable_demo.py"


@pytest.mark.timeout(240)  # a database, a web server and a worker start, one after the other
def test_worker_makes_the_payment_of_a_web_process_that_was_killed() -> None:
    ended = subprocess.run([sys.executable, EXAMPLE], capture_output=True, text=True, check=False, timeout=220)
    assert ended.stdout.splitlines() == [
        "The customer got HTTP/1.1 200 OK, and the web process was killed",
        "Payments made: []",
        "A worker made it: ['charge-17: 2990 cents for order 17']",
        "It stopped with status 0",
    ], ended.stderr

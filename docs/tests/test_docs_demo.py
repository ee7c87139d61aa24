"""The demo of the shop, run as a person would run it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[1] / "examples" / "shop" / "demo.py"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """The demo, run once, from another folder; it leaves nothing there."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    finished = subprocess.run(
        [sys.executable, DEMO], cwd=elsewhere, capture_output=True, encoding="utf-8", timeout=240, check=False
    )
    assert list(elsewhere.iterdir()) == []
    return finished


def lines_of(output: str, request: str) -> list[str]:
    """The table of a request: its lines up to the first empty one."""
    _, _, rest = output.partition(f"\n{request}\n")
    return rest.partition("\n\n")[0].splitlines()


def test_passes_all_its_checks(demo: subprocess.CompletedProcess[str]) -> None:
    """Its exit status is 0, and the last line counts the checks."""
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert demo.stderr == ""
    assert "✗" not in demo.stdout
    summary = re.search(r"(\d+) of (\d+) checks passed", demo.stdout)
    assert summary is not None
    assert summary[1] == summary[2] == str(demo.stdout.count("✓"))


@pytest.mark.parametrize(
    "request_line, expected",
    [
        ("POST /users → 201", ["LAST BYTE IS SENT", "▶ send_welcome_email", "■ send_welcome_email succeeded"]),
        ("PUT /products/1 → 200", ["ENDPOINT HAS RETURNED", "after_route opens", "▶ write_audit_entry"]),
        ("PUT /products/1 → 200", ["after_response opens", "■ invalidate_product_cache succeeded"]),
        (
            "GET /catalogue.csv → 200",
            ["after_route opens", "▶ write_audit_entry", "LAST BYTE IS SENT", "▶ delete_file"],
        ),
        ("POST /images → 201", ["▶ generate_thumbnails", "LAST BYTE IS SENT"]),
        ("POST /images → 201", ["▶ update_search_index", "■ update_search_index succeeded"]),
        ("POST /orders → 201", ["▶ track_order_event", "ENDPOINT HAS RETURNED", "■ release_stock discarded"]),
        ("POST /orders → 201", ["▶ submit shop.charge", "■ submit shop.charge is stored", "ENDPOINT HAS RETURNED"]),
        ("POST /orders → 201", ["LAST BYTE IS SENT", "■ shop.charge failed: ConnectionError"]),
        ("POST /orders → 201", ["■ shop.charge failed", "▶ shop.charge starts attempt 2", "■ shop.charge succeeded"]),
        ("POST /orders → 402", ["LAST BYTE IS SENT", "▶ release_stock", "■ release_stock succeeded"]),
    ],
)
def test_shows_what_happened_in_a_request(
    demo: subprocess.CompletedProcess[str], request_line: str, expected: list[str]
) -> None:
    """The table of each request has its moments and tasks, in the order in which they came."""
    table = [" ".join(line.split()) for line in lines_of(demo.stdout, request_line)]
    places = [next((n for n, line in enumerate(table) if text in line), -1) for text in expected]
    assert -1 not in places, table
    assert sorted(places) == places, table


def test_table_has_the_time_since_the_request_arrived(demo: subprocess.CompletedProcess[str]) -> None:
    times = [float(line.split(" ms ")[0]) for line in lines_of(demo.stdout, "POST /users → 201")]
    assert times[0] == 0
    assert sorted(times) == times
    assert len(times) > 5


def test_fits_a_narrow_terminal_and_has_no_colour_in_a_pipe(demo: subprocess.CompletedProcess[str]) -> None:
    assert max(map(len, demo.stdout.splitlines())) < 100
    assert "\033" not in demo.stdout


def test_payment_ends_before_the_pool_is_closed(demo: subprocess.CompletedProcess[str]) -> None:
    """The table of the shutdown shows it, and so do the checks."""
    _, _, shutdown = demo.stdout.partition("Milliseconds since SIGTERM")
    order = [
        shutdown.find(text) for text in ("Shutting down", "■ shop.charge", "Tasks drained", "Database pool closed")
    ]
    assert -1 not in order, shutdown
    assert sorted(order) == order, shutdown
    assert "✓ it ended BEFORE the database pool closed" in shutdown


def test_payment_of_a_server_that_was_killed_is_made_by_a_worker(demo: subprocess.CompletedProcess[str]) -> None:
    """The last step kills the server right after its response."""
    _, _, killed = demo.stdout.partition("SIGKILL right after the response")
    assert "✓ the server was killed before anything was paid" in killed
    assert "✓ a worker made the payment: in two tries, once" in killed


def test_index_is_built_once_for_three_renames_and_the_report_is_sent(demo: subprocess.CompletedProcess[str]) -> None:
    """One task at a time for a key, and a periodic task: each has a step of its own."""
    _, _, renames = demo.stdout.partition("Renames in a row")
    assert "✓ the index was built once" in renames
    assert "▶ rebuild_search_index" in renames
    _, _, report = demo.stdout.partition("Periodic: the report of the night")
    assert "Paid orders: 1, 59.80 EUR" in report
    assert "✓ no run has failed or was skipped" in report

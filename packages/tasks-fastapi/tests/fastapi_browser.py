"""A real browser for tests of pages: Chromium without a window, driven by playwright."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from docs_browser import find_browser


@contextmanager
def browser() -> Iterator[Any]:
    """Run a browser, as playwright's `Browser`, for as long as the block runs."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(
            executable_path=find_browser(), args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        try:
            yield running
        finally:
            running.close()

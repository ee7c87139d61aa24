"""The page for operators in a real browser: what is on it, each button, attacks, colours, a phone, the keyboard."""

from __future__ import annotations

import json
import os
import re
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.error import HTTPError

import pytest
from fastapi_browser import browser
from servers.panel_app import EVIL
from servers.process import ServerProcess

# Where the pictures go that the page of the documentation shows, if the tests are asked for them.
_PICTURES = os.environ.get("PANEL_PICTURES")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as running:
        yield running


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a server with failed, waiting and running tasks."""
    with ServerProcess("uvicorn", tmp_path, app="servers.panel_app:app") as process:
        process.log.wait_until(process.accepts, "the server", 30)
        address = f"http://127.0.0.1:{process.port}"
        send(urllib.request.Request(f"{address}/begin", method="POST"))
        yield address


@pytest.fixture
def page(chromium: Any, server: str) -> Iterator[Any]:
    """The page, opened by an operator. What the browser refuses or cannot run fails the test."""
    context = chromium.new_context(viewport={"width": 1200, "height": 900})
    context.add_cookies([{"name": "admin", "value": "1", "url": server}])
    context.set_default_timeout(10_000)
    opened = context.new_page()
    complaints: list[str] = []
    opened.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.goto(f"{server}/_tasks/")
    opened.wait_for_selector("#live.good")
    yield opened
    context.close()
    assert complaints == []


def send(request: urllib.request.Request) -> tuple[int, str]:
    """Return the status and the body of the answer."""
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


def press(page: Any, label: str) -> None:
    """Press a button, and wait for the page that follows."""
    with page.expect_navigation():
        page.get_by_role("button", name=label, exact=True).click()


def row(page: Any, text: str) -> str:
    found: str = page.locator("#stored tbody tr", has_text=text).first.inner_text()
    return found


def picture(page: Any, name: str) -> None:
    if _PICTURES is not None:
        page.screenshot(path=f"{_PICTURES}/{name}.png", full_page=True)


def test_page_shows_the_process_the_queues_and_the_stored_tasks(page: Any) -> None:
    assert page.title() == "Tasks of Shop"
    process = page.locator("#process").inner_text()
    assert "running" in process
    assert "clean_up" in process
    queue = page.locator("#queues tbody tr", has_text="default").inner_text().split()
    assert queue[0] == "default"
    troubles = page.locator("#troubles").inner_text()
    assert "kept the event loop from turning for 1.35 s" in troubles
    assert "KeyError" in troubles
    page.locator("#troubles summary", has_text="fail KeyError").click()
    assert "raise KeyError(EVIL)" in page.locator("#troubles details[open] pre").inner_text()
    assert "failed" in row(page, "panel.charge")
    assert "ConnectionError" in row(page, "panel.charge")
    assert "4711" not in page.content()


def test_name_with_html_in_it_is_text(page: Any) -> None:
    """The three places of it: a running task, a stored task, a paused function; also after a live update."""
    page.wait_for_timeout(2500)
    assert page.locator("img").count() == 0
    assert page.title() == "Tasks of Shop"
    assert EVIL in page.locator("#process").inner_text()
    assert EVIL in page.locator("#queues").inner_text()
    assert EVIL in page.locator("#stored").inner_text()


def test_failed_task_is_retried_and_discarded(page: Any) -> None:
    press(page, "Discard task 0, panel.charge")
    assert page.locator("#stored tbody tr", has_text="panel.charge").count() == 2
    press(page, "Retry task 1, panel.charge")
    page.wait_for_function("document.querySelector('#queues').innerText.includes('default')")
    page.reload()
    assert row(page, "panel.charge")  # it ran again, and has failed again


def test_waiting_task_and_running_task_are_cancelled(page: Any) -> None:
    press(page, f"Cancel task 3, {EVIL}")
    assert "cancelled" in row(page, "<img")
    press(page, f"Cancel {EVIL}")
    page.reload()
    assert EVIL not in page.locator("#process").inner_text()


def test_queue_and_function_are_paused_and_resumed(page: Any) -> None:
    press(page, "Pause default")
    assert page.get_by_role("button", name="Resume default").count() == 1
    press(page, "Resume default")
    assert page.get_by_role("button", name="Pause default").count() == 1
    press(page, f"Resume {EVIL}")
    page.reload()
    assert "succeeded" in row(page, "<img")


def test_filter_and_details(page: Any) -> None:
    page.get_by_label("State", exact=True).select_option("failed")
    page.get_by_label("Name", exact=True).fill("panel.charge")
    page.get_by_label("Error", exact=True).fill("connection")
    press(page, "Show")
    assert page.locator("#stored tbody tr").count() == 3
    with page.expect_navigation():
        page.get_by_role("link", name="1", exact=True).click()
    details = page.locator("#stored").inner_text()
    assert "Task 1, panel.charge: failed" in details
    assert "charge-1" in details
    assert "4711" not in page.content()
    press(page, "Discard task 0, panel.charge")
    assert "state=failed" in page.url, "the filter stays"


def test_numbers_are_live(page: Any, server: str) -> None:
    send(urllib.request.Request(f"{server}/more", method="POST"))
    page.locator("#process tbody tr", has_text="one more").wait_for()


def test_page_has_no_asset_from_elsewhere_and_its_policy_is_strict(page: Any, server: str) -> None:
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    response = page.reload()
    page.wait_for_selector("#live.good")
    assert all(url.startswith(f"{server}/_tasks/") for url in requested)
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


# ---- who may ----


def test_page_without_a_dependency_is_refused_with_the_line_to_write(server: str) -> None:
    for path in ("", "events", "style.css", "script.js"):
        status, text = send(urllib.request.Request(f"{server}/open/{path}"))
        assert status == 403
        line = 'app.include_router(tasks_panel(), prefix="/_tasks", dependencies=[Depends(admin)])'
        assert line in json.loads(text)["detail"]


def test_stranger_gets_what_the_dependency_says(server: str) -> None:
    for path, data in (("", None), ("events", None), ("act", b"do=pause&queue=default")):
        status, _ = send(urllib.request.Request(f"{server}/_tasks/{path}", data))
        assert status == 401


def test_another_site_can_press_no_button(page: Any, server: str) -> None:
    """The browser of an operator opens a page that sends a form to the panel, with the cookie."""
    with _attacker(f"{server}/_tasks/act") as address:
        attacked = page.context.new_page()
        attacked.goto(address)
        attacked.wait_for_url(f"{server}/_tasks/act")
        assert "Refused: the request does not come from this page" in attacked.content()
        attacked.close()
    page.reload()
    assert page.get_by_role("button", name="Pause default").count() == 1


def test_request_without_proof_of_its_origin_is_refused(server: str) -> None:
    def act(data: bytes, **headers: str) -> int:
        request = urllib.request.Request(f"{server}/_tasks/act", data, {"Cookie": "admin=1", **headers})
        return send(request)[0]

    pause = b"do=pause&queue=default"
    assert act(pause) == 403
    assert act(pause, Origin="http://evil.example") == 403
    assert act(pause, Origin="null") == 403
    assert act(pause, **{"Sec-Fetch-Site": "same-site"}) == 403
    assert act(b"do=nothing", Origin=server) == 404
    assert act(b"do=cancel_memory&id=x", Origin=server) == 404


class _attacker:  # noqa: N801  a context manager
    def __init__(self, target: str) -> None:
        form = f'<form method=post action="{target}"><input name=do value=pause><input name=queue value=default></form>'
        body = f"<body>{form}<script>document.forms[0].submit()</script>".encode()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002  its name in the base class

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> str:
        self._thread.start()
        return f"http://localhost:{self._server.server_port}/"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


# ---- how it looks ----


def test_light_and_dark_have_enough_contrast(page: Any) -> None:
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        picture(page, scheme)
        for selector in ("h2", ".dim", "a", ".bad", "button", "td"):
            ratio = page.evaluate(_CONTRAST, selector)
            assert ratio >= 4.5, (scheme, selector, ratio)


# WCAG's contrast of the first such element with the first background behind it.
_CONTRAST = """selector => {
  const numbers = text => text.match(/[0-9.]+/g).map(Number);
  const light = rgb => rgb.slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
  const element = document.querySelector(`main ${selector}`);
  let behind = element;
  while (numbers(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
  const [a, b] = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor].map(numbers).map(light);
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}"""


def test_page_fits_the_width_of_a_phone(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    picture(page, "phone")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.get_by_role("button", name="Retry task 1, panel.charge").is_visible()


def test_keyboard_reaches_and_presses_each_button(page: Any) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.get_by_role("button", name="Pause default").focus()
    page.wait_for_timeout(2500)
    assert re.match("Pause default", page.evaluate("document.activeElement.getAttribute('aria-label')") or "")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    assert page.get_by_role("button", name="Resume default").count() == 1


def test_live_update_shifts_nothing(page: Any) -> None:
    page.evaluate(
        "window.shift = 0; new PerformanceObserver(list => list.getEntries().forEach(one => window.shift += one.value))"
        ".observe({type: 'layout-shift', buffered: false})"
    )
    page.wait_for_timeout(5000)
    assert page.evaluate("window.shift") < 0.02

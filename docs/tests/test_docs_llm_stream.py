"""The example of a stream that survives the connection of its reader does what the page says, also in a browser."""

from __future__ import annotations

import json
import queue
import runpy
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from docs_browser import CuttingProxy, browsing, find_browser
from fastapi import FastAPI, Request, Response

EXAMPLE = Path(__file__).parents[1] / "examples" / "llm_stream"
ANSWER = " ".join(["You ask: Why? My answer has", *map(str, range(1, 31)), "words."])

# What the test adds to the page: it starts, and reports what a person sees when the answer is complete.
_SCRIPT = """
<script>
form.requestSubmit();
const watch = setInterval(() => {
  if (!/succeeded|failed|gone/.test(state.textContent)) return;
  clearInterval(watch);
  const seen = { answer: answer.textContent.trim(), state: state.textContent, progress: progress.value };
  fetch("/seen", { method: "POST", body: JSON.stringify(seen) });
}, 20);
</script>
"""


def test_a_client_that_loses_its_connection_goes_on_where_it_was() -> None:
    printed = subprocess.run(
        [sys.executable, "demo.py"], cwd=EXAMPLE, capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert printed == (EXAMPLE.parent / "output" / "llm_stream.txt").read_text(encoding="utf-8")
    accepted, before, cut, after, last, result = printed.splitlines()
    assert accepted == "202 pending"
    assert f"{before}{after}".strip() == ANSWER
    assert cut == "-- the connection is lost after event 5"
    assert last == "-- the last event was 37-end"
    assert result == 'succeeded "You ask: Why? My answer has 1 ..."'


class Server:
    """The example behind a proxy, and what its browser has seen."""

    def __init__(self, app: FastAPI, cut_after: int) -> None:
        self.cut_after = cut_after
        self.seen: queue.Queue[dict[str, Any]] = queue.Queue()
        self.resumed_after: list[str] = []

        @app.get("/test")
        async def page() -> Response:
            text = (EXAMPLE / "page.html").read_text(encoding="utf-8") + _SCRIPT
            return Response(text, media_type="text/html")

        @app.post("/seen")
        async def seen(request: Request) -> None:
            self.seen.put(json.loads(await request.body()))

        @app.middleware("http")
        async def note_resumption(request: Request, call_next: Any) -> Any:
            if "last-event-id" in request.headers:
                self.resumed_after.append(request.headers["last-event-id"])
            return await call_next(request)

        self._listener = socket.create_server(("127.0.0.1", 0))
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],))
        self._thread.start()
        self.proxy = CuttingProxy(self._listener.getsockname()[1], cut_after)
        self.url = f"http://127.0.0.1:{self.proxy.port}/test"

    def close(self) -> None:
        self.proxy.close()
        self._server.should_exit = True
        self._thread.join()
        self._listener.close()


@pytest.fixture(params=[10**9, 400], ids=["whole", "cut"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    find_browser()
    app: FastAPI = runpy.run_path(str(EXAMPLE / "app.py"))["app"]
    with ExitStack() as stack:
        server = Server(app, request.param)
        stack.callback(server.close)
        yield server


@pytest.mark.timeout(400)  # where there is no Chromium, it is installed
def test_a_browser_shows_each_word_once(server: Server, tmp_path: Path) -> None:
    with browsing(server.url, tmp_path / "profile"):
        seen = server.seen.get(timeout=60)
    assert seen == {"answer": ANSWER, "state": "succeeded", "progress": 37}
    numbers = [int(number) for number in server.resumed_after]
    assert numbers == sorted(set(numbers))
    assert server.proxy.cuts - len(numbers) in (0, 1)  # the last event may be what the proxy cuts after
    assert bool(numbers) is (server.cut_after < 1000)

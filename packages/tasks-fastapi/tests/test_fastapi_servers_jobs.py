"""Real servers are stopped while clients follow jobs: no stream keeps the server from the drain of its tasks."""

from __future__ import annotations

import re
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest
from servers.process import ONE_WORKER, Client, ServerProcess, request

# hypercorn closes no connection with a client that does not read, whatever the application does.
_WAITS_FOR_CLIENTS = {"hypercorn", "hypercorn-trio"}


def follow(process: ServerProcess, size: int) -> Client:
    accepted = re.search(rb'"events":"([^"]+)"', request(process.port, "POST", f"/answers?size={size}"))
    assert accepted is not None
    return Client(process.port, "GET", accepted[1].decode())


@pytest.mark.parametrize("server", ONE_WORKER)
def test_streams_end_with_an_event_before_the_drain(server: str, tmp_path: Path) -> None:
    with ServerProcess(server, tmp_path, app="servers.jobs_app:app") as process, ExitStack() as clients:
        process.wait_ready()
        reader = clients.enter_context(follow(process, 1))
        reader.read_until(b"id: 5\n")
        if server not in _WAITS_FOR_CLIENTS:
            stuck = clients.enter_context(follow(process, 60_000))
            stuck.read_until(b"id: 1\n")  # and then it reads no more
        process.signal(signal.SIGTERM)
        reader.read_until(b"event: shutdown\n")
        last = re.findall(rb"id: (\d+)\n", reader.received)[-1]
        reader.read_until(b'data: {"resume_after":%b}\n\n' % last)
        process.wait()
        jobs = 1 if server in _WAITS_FOR_CLIENTS else 2
        assert process.log.names() == ["lifespan opened", *["job cancelled"] * jobs, "lifespan closed"]

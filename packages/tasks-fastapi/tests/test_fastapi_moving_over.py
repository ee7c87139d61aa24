"""The test suite of fastapi-tasks 0.1.0, as it is published, passes when its import is that of tasks_fastapi."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ALIASES = {
    "__init__.py": "from tasks_fastapi import TaskErrorHandler, Tasks, add_tasks\n",
    "errors.py": "from tasks_fastapi import TasksNotInstalledError as FastAPITasksUninitializedAppError\n",
}
# Its settings. Fixtures, and so the lifespan of the application, have another event loop than the tests.
SETTINGS = "[pytest]\nasyncio_default_fixture_loop_scope = session\n"


def test_the_suite_of_fastapi_tasks(tmp_path: Path) -> None:
    source = fetch(tmp_path)
    shutil.copytree(source / "tests", tmp_path / "tests")
    alias = tmp_path / "fastapi_tasks"
    alias.mkdir()
    for name, text in ALIASES.items():
        (alias / name).write_text(text)
    # A helper that has nothing to do with tasks, and that the suite tests as well.
    shutil.copy(source / "fastapi_tasks" / "utils.py", alias)
    (tmp_path / "pytest.ini").write_text(SETTINGS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 passed" in done.stdout


def fetch(folder: Path) -> Path:
    """Download the source distribution, which has the tests."""
    command = ["uv", "run", "--no-project", "--with", "pip", "python", "-m", "pip"]
    if shutil.which("uv") is None:
        command = [sys.executable, "-m", "pip"]
    command += ["download", "--quiet", "--no-deps", "--no-binary=:all:", "--dest", str(folder), "fastapi-tasks==0.1.0"]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"fastapi-tasks could not be downloaded: {error}")
    (archive,) = folder.glob("fastapi_tasks-*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    return folder / "fastapi_tasks-0.1.0"

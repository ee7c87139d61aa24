"""
What pages show of logs is what the examples write.

Renew the kept output with `pytest docs/tests --update-examples`.
"""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
import tasks_core
import tasks_fastapi

EXAMPLES = Path(__file__).parents[1] / "examples"
OUTPUT = EXAMPLES / "output"


def compare(name: str, printed: str, request: pytest.FixtureRequest) -> None:
    """Compare with what is kept, except for numbers that are different each time."""
    kept = OUTPUT / name
    if request.config.getoption("update_examples"):
        kept.write_text(printed, encoding="utf-8")
    assert normal(kept.read_text(encoding="utf-8")) == normal(printed)


def normal(printed: str) -> str:
    for varying, fixed in (
        (r"127\.0\.0\.1:\d+", "address"),
        (r"process \[\d+\]", "process"),
        (r"drained in \d\.\d\d s", "drained"),
        (r" +\+\d+\.\d ", " time "),
    ):
        printed = re.sub(varying, fixed, printed)
    return printed


def as_read(printed: str) -> str:
    """Put output as pages show it: the examples lie in /srv/app, and frames of the packages are left out."""
    lines, ours = [], False
    for line in printed.replace(str(EXAMPLES), "/srv/app").splitlines():
        if line.startswith('  File "'):
            ours = "/srv/app" not in line
        elif not line.startswith("    "):
            ours = False
        if not ours:
            lines.append(line)
    return "\n".join(lines) + "\n"


def test_log_lines(request: pytest.FixtureRequest) -> None:
    """The page about the log shows every kind of line, to the letter."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / "log_lines.py"], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    compare("log_lines.txt", as_read(done.stdout), request)


@pytest.mark.parametrize("name, options", [("failing_test", []), ("failing_cut", ["--show-capture=no"])])
def test_failing_test(name: str, options: list[str], request: pytest.FixtureRequest) -> None:
    """The page about testing shows what a test that fails says."""
    command = [sys.executable, "-m", "pytest", f"{name}.py", "-q", "--tb=short", "-p", "no:cacheprovider"]
    # Without the settings of this repository, as another project runs it.
    command += ["--config-file", "/dev/null", "--rootdir", str(EXAMPLES), *options]
    # pytest shows longer differences where these are set, which is not what a person sees.
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "BUILD_NUMBER")}
    done = subprocess.run(
        command, check=False, cwd=EXAMPLES, capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 1, done.stdout + done.stderr
    begin, end = done.stdout.index(f"{name}.py:"), done.stdout.index("=== short test summary")
    compare(f"{name}.txt", done.stdout[begin:end].rstrip("=\n") + "\n", request)


LEVELS = {"critical", "error", "exception", "info", "log", "warning"}


def messages() -> list[str]:
    """Return what the packages may log, as format strings; not what is for debugging."""
    calls = [
        node
        for package in (tasks_core, tasks_fastapi)
        for module in Path(str(package.__file__)).parent.rglob("*.py")
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and re.fullmatch(r"_?logger\.(\w+)", ast.unparse(node.func))
    ]
    texts = [
        next(arg.value for arg in call.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str))
        for call in calls
        if isinstance(call.func, ast.Attribute) and call.func.attr in LEVELS
    ]
    assert len(texts) > 20
    return texts


def test_every_line_is_explained() -> None:
    """The page about the log has each line that the packages can write, with something in place of what varies."""
    page = (EXAMPLES.parent / "content" / "operate" / "logs.md").read_text(encoding="utf-8")
    page = " ".join((page + (OUTPUT / "log_lines.txt").read_text(encoding="utf-8")).split())
    pieces = [(text, piece.strip()) for text in messages() for piece in re.split(r"%[.\d]*[a-z]", text)]
    assert [text for text, piece in pieces if piece not in page] == []


@pytest.fixture
def server() -> Iterator[tuple[subprocess.Popen[str], int]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "first_steps:app", "--app-dir", str(EXAMPLES), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1) as process:
        try:
            yield process, port
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], text: str) -> list[str]:
    """Return the lines up to the first that has *text*."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return lines
    pytest.fail(f"the server ended without saying {text!r}:\n{''.join(lines)}")


def section(name: str, *lines: str) -> str:
    return "".join([f"--8<-- [start:{name}]\n", *lines, f"--8<-- [end:{name}]\n"])


def test_first_steps(server: tuple[subprocess.Popen[str], int], request: pytest.FixtureRequest) -> None:
    """The first application runs under uvicorn, its tasks run, and its log has the lines of the page in their order."""
    process, port = server
    read_until(process, "Uvicorn running")
    user = json.dumps({"email": "ann@example.org"}).encode()
    headers = {"content-type": "application/json"}
    with urlopen(Request(f"http://127.0.0.1:{port}/users", user, headers)) as response:
        assert response.status == 201
        assert json.load(response) == {"email": "ann@example.org"}
    log = read_until(process, "welcome")
    process.send_signal(signal.SIGINT)
    end = read_until(process, "Finished server process")
    process.wait(10)
    compare("first_steps.txt", section("request", *log) + section("shutdown", *end), request)

"""The page about the command that moves an application shows what the command does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[1] / "content" / "move" / "command.md"


def test_the_page_shows_what_the_command_writes(tmp_path: Path) -> None:
    blocks = re.findall(r"```(python|text)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (_, before), (_, after), (_, output) = blocks
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "app.py").write_text(before, encoding="utf-8")
    command = [sys.executable, "-m", "tasks_fastapi.move", "app.py", "--write"]
    done = subprocess.run(command, check=True, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (tmp_path / "app.py").read_text(encoding="utf-8") == after
    assert done.stdout.strip("\n") == output.strip("\n")

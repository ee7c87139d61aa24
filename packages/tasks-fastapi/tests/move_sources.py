"""Projects for `python -m tasks_fastapi.move`, and what their files begin with."""

import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest
from tasks_fastapi.move.__main__ import main


@dataclass
class Sources:
    """A project in a folder of its own, and the command that is run on it."""

    folder: Path
    capsys: pytest.CaptureFixture[str]

    def add(self, name: str, source: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source).lstrip("\n"))
        return path

    def run(self, *arguments: str) -> tuple[int, str]:
        code = main([str(self.folder), *arguments])
        return code, self.capsys.readouterr().out

    def moved(self, source: str, *arguments: str) -> str:
        """Return what the command makes of one file; a second run has to find nothing to change."""
        path = self.add("module.py", source)
        code, _ = self.run("--write", *arguments)
        assert code == 0
        text = path.read_text()
        assert self.run(*arguments)[0] == 0
        assert path.read_text() == text
        return text

    def left(self, source: str, *arguments: str) -> str:
        """Return the reasons for which every call of one file is left; the file has to stay as it is."""
        path = self.add("module.py", source)
        before = path.read_bytes()
        code, output = self.run("--write", *arguments)
        assert code == 0
        assert path.read_bytes() == before
        assert " 0 moved" in output
        return output


@pytest.fixture
def sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Sources:
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "pyproject.toml").touch()  # the root of the project
    return Sources(folder, capsys)


def dedent(source: str) -> str:
    return textwrap.dedent(source).lstrip("\n")


APP = """\
import asyncio

from fastapi import FastAPI

app = FastAPI()


async def track(event: str, *, count: int = 1) -> None: ...


"""


def in_app(source: str) -> str:
    return APP + dedent(source)


BACKGROUND = """\
from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Depends, UploadFile

router = APIRouter()


def send(address: str, subject: object = "") -> None: ...


def session():
    yield object()


def user(db=Depends(session)):
    return db


def settings():
    return {}


"""


ENDPOINT = """
@router.post("/")
async def create(address: str, background: BackgroundTasks{parameters}):
{body}
"""


def endpoint(parameters: str, body: str) -> str:
    return BACKGROUND + ENDPOINT.format(parameters=parameters, body=textwrap.indent(body, "    "))


MODELS = """
from models import Row
from sqlalchemy import Column, Integer
from sqlalchemy.orm import Mapped, relationship


class Base:
    id = Column(Integer, primary_key=True)


class User(Base):
    email: Mapped[str | None]
    friends: Mapped[list[Row]]
    owner = relationship("User")


CurrentUser = Annotated[User, Depends(user)]
"""


RESPONSE = BACKGROUND + dedent("""
    from fastapi.responses import FileResponse, JSONResponse
    from starlette.background import BackgroundTask


    """)

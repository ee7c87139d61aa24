"""`python -m tasks_fastapi.move`: what the names of a project refer to, and which files belong to it."""

from pathlib import Path

import pytest
from move_sources import APP, BACKGROUND, Sources, dedent, in_app, sources
from tasks_fastapi.move.__main__ import main

__all__ = ("sources",)

FOUND = {
    "a method of a class": (
        """
        class Orders:
            @classmethod
            async def count(cls): ...

        async def service():
            asyncio.create_task(Orders.count())
        """,
        "schedule(Orders.count)",
    ),
    "a method of an object": (
        """
        class Orders:
            async def count(self): ...

        orders = Orders()

        async def service():
            asyncio.create_task(orders.count())
        """,
        "schedule(orders.count)",
    ),
    "a method of one of several bases": (
        """
        class Top: ...
        class Left(Top): ...
        class Right(Top):
            async def count(self): ...
        class Bottom(Left, Right):
            async def create(self):
                asyncio.create_task(self.count())
        """,
        "schedule(self.count)",
    ),
    "several imports of one package": (
        """
        import json, asyncio.events
        import asyncio.tasks

        async def service():
            asyncio.tasks, json
            asyncio.create_task(track("a"))
        """,
        'schedule(track, "a")',
    ),
    "a name that is global elsewhere": (
        """
        count = 0

        async def service():
            global count
            count += 1
            def more():
                nonlocal total
                total += 1
            total = [number for number in range(3) if (lambda track: track)(number)]
            asyncio.create_task(track("a"))
        """,
        'schedule(track, "a")',
    ),
    "an application of a subclass": (
        """
        class Shop(FastAPI): ...

        shop = Shop()

        @shop.get("/")
        async def home():
            asyncio.create_task(track("a"))
        """,
        'async def home(tasks: Tasks):\n    tasks.schedule(track, "a")',
    ),
    "an application that a function makes": (
        """
        def make(): ...

        made = make()

        @made.get("/")
        async def home():
            asyncio.create_task(track("a"))
        """,
        'async def home():\n    current_tasks().schedule(track, "a")',
    ),
}


@pytest.mark.parametrize("case", FOUND)
def test_what_a_name_refers_to_is_found(case: str, sources: Sources) -> None:
    source, expected = FOUND[case]
    assert expected in sources.moved(in_app(source))


UNKNOWN = {
    "an inherited method that no base has": (
        """
        class Top: ...
        class Left(Top): ...
        class Right(Top): ...
        class Bottom(Left, Right):
            async def create(self):
                asyncio.create_task(self.count())
        """,
        "does not show that self.count is",
    ),
    "a method that a base of another library may have": (
        """
        import orm

        class Row(orm.Base):
            async def create(self):
                asyncio.create_task(self.count())
        """,
        "does not show that self.count is",
    ),
    "a method of a parameter": (
        """
        class Orders:
            async def create(self, other):
                asyncio.create_task(other.count())
        """,
        "does not show that other.count is",
    ),
    "a method of what a static method gets": (
        """
        class Orders:
            @staticmethod
            async def create(other):
                asyncio.create_task(other.count())

            async def count(self): ...
        """,
        "does not show that other.count is",
    ),
    "the error of a handler": (
        """
        try:
            from fast import track
        except ImportError as track:
            pass

        async def service():
            asyncio.create_task(track())
        """,
        "does not show that track is",
    ),
    "the names of a pattern": (
        """
        match app:
            case [first, *others] as second:
                pass

        async def service():
            asyncio.create_task(others())
        """,
        "does not show that others is",
    ),
    "two modules of one name": (
        """
        import json as coder
        import asyncio as coder

        async def service():
            coder.create_task(track("a"))
            loop.create_task(track("b"))
        """,
        "1 call: 0 moved, 1 left",
    ),
    "a base that is a function": (
        """
        def make(): ...

        class Shop(make): ...

        shop = Shop()

        @shop.get("/")
        async def home():
            task = asyncio.create_task(track("a"))
        """,
        "its result is used",
    ),
    "a call of what a call returns": (
        """
        made = app.make()()

        async def service():
            asyncio.create_task(made.count())
        """,
        "does not show that made.count is",
    ),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_a_name_refers_to_may_be_uncertain(case: str, sources: Sources) -> None:
    source, reason = UNKNOWN[case]
    assert reason in sources.left(in_app(source))


def test_modules_that_import_a_name_from_each_other_do_not_show_what_it_is(sources: Sources) -> None:
    sources.add("one.py", "from other import work\n")
    sources.add("other.py", "from one import work\n")
    source = in_app("from one import work\n\nasync def service():\n    asyncio.create_task(work())\n")
    assert "does not show that work is" in sources.left(source)


ENDPOINT = APP + '@app.get("/")\nasync def home():\n    asyncio.create_task(track("a"))\n'


def test_a_function_of_another_module_that_has_the_name_of_an_endpoint_is_no_direct_call(sources: Sources) -> None:
    sources.add("first.py", "from library import home\n\nhome()\n")
    sources.add("second.py", "def home(): ...\n\nhome()\n")
    assert "async def home(tasks: Tasks):" in sources.moved(ENDPOINT)


def test_only_the_given_file_is_changed_and_the_whole_project_is_read(sources: Sources) -> None:
    other = sources.add("other.py", "from module import home\n\nhome()\n")
    sources.add("broken.py", "x = (\n")
    path = sources.add("module.py", ENDPOINT)
    assert main([str(path), "--write"]) == 0
    assert 'async def home():\n    current_tasks().schedule(track, "a")' in path.read_text()
    assert other.read_text() == "from module import home\n\nhome()\n"
    output = sources.capsys.readouterr().out
    assert "Not handled" not in output


def test_environments_hidden_folders_and_links_are_no_part_of_the_project(sources: Sources, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    files = [
        sources.add("python/lib/module.py", ENDPOINT),
        sources.add(".hidden/module.py", ENDPOINT),
        sources.add("venv/module.py", ENDPOINT),
        elsewhere / "module.py",
    ]
    sources.add("python/pyvenv.cfg", "")
    sources.add("notes.txt", ENDPOINT)
    files[-1].write_text(ENDPOINT)
    (sources.folder / "link").symlink_to(elsewhere)
    (sources.folder / "link.py").symlink_to(files[-1])
    path = sources.add("app.py", ENDPOINT)
    code, output = sources.run("--write")
    assert code == 0
    assert "1 call: 1 moved, 0 left. 1 file changed." in output
    assert "create_task" not in path.read_text()
    assert all(file.read_text() == ENDPOINT for file in files)


def test_without_a_project_file_the_package_is_the_project(sources: Sources) -> None:
    (sources.folder / "pyproject.toml").unlink()
    sources.add("package/__init__.py", "")
    sources.add("package/mail.py", "async def send(): ...\n")
    sources.add("package/web/__init__.py", "")
    path = sources.add(
        "package/web/routes.py",
        "import asyncio\nfrom ..mail import send\n\nasync def service():\n    asyncio.create_task(send())\n",
    )
    assert main([str(path), "--write"]) == 0
    assert "current_tasks().schedule(send)" in path.read_text()


def test_a_file_that_is_nested_more_deeply_than_python_recurses_is_listed(sources: Sources) -> None:
    path = sources.add("module.py", ENDPOINT + "x = " + "+".join(["1"] * 1500) + "\n")
    code, output = sources.run("--write")
    assert code == 3
    assert f"Not handled:\n  {path}: it is nested too deeply\n" in output


def test_a_file_that_an_editor_saves_in_between_is_not_overwritten(
    sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sources.add("module.py", ENDPOINT)
    read = Path.read_bytes

    def read_and_save(self: Path) -> bytes:
        content = read(self)
        if self.name == path.name:
            path.write_text(ENDPOINT + "# saved\n")
        return content

    monkeypatch.setattr(Path, "read_bytes", read_and_save)
    code, output = sources.run("--write")
    assert code == 3
    assert f"Not handled:\n  {path}: the file has changed since it was read\n" in output
    assert path.read_text() == ENDPOINT + "# saved\n"


def test_a_file_that_does_not_parse_and_has_no_call_of_an_endpoint_changes_nothing(sources: Sources) -> None:
    sources.add("broken.py", "x = (\n")
    path = sources.add(
        "module.py",
        BACKGROUND + dedent('@router.get("/")\ndef home(later: BackgroundTasks):\n    later.add_task(send, "a")\n'),
    )
    assert sources.run("--write")[0] == 3
    assert 'def home(tasks: Tasks):\n    tasks.add_task(send, "a")\n' in path.read_text()

"""`python -m tasks_fastapi.move`: what it moves, what it leaves and why, and that moved code runs."""

import importlib
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from fastapi.testclient import TestClient
from move_sources import BACKGROUND, ENDPOINT, MODELS, RESPONSE, Sources, dedent, endpoint, in_app, sources
from tasks_fastapi.move.__main__ import main

__all__ = ("sources",)


@pytest.fixture
def load(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    monkeypatch.syspath_prepend(str(sources.folder))
    known = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - known:
        del sys.modules[name]


# asyncio.create_task


def test_a_statement_in_an_endpoint_uses_a_new_parameter(sources: Sources) -> None:
    assert sources.moved(
        in_app('''
        @app.get("/")
        async def home(name: str, limit: int = 10) -> str:
            """The first page."""
            asyncio.create_task(track("home", count=limit))  # for the statistics
            return "hello"
        ''')
    ) == dedent('''
        from fastapi import FastAPI
        from tasks_fastapi import Tasks

        app = FastAPI()


        async def track(event: str, *, count: int = 1) -> None: ...


        @app.get("/")
        async def home(name: str, tasks: Tasks, limit: int = 10) -> str:
            """The first page."""
            tasks.schedule(track, "home", count=limit)  # for the statistics
            return "hello"
        ''')


def test_a_function_that_is_no_endpoint_uses_current_tasks(sources: Sources) -> None:
    text = sources.moved(
        in_app("""
        class Orders:
            async def create(self) -> None:
                asyncio.create_task(self._notify(1, two=2))

            async def _notify(self, one: int, two: int) -> None: ...
        """)
    )
    assert "        current_tasks().schedule(self._notify, 1, two=2)\n" in text
    assert "from tasks_fastapi import current_tasks\n" in text


def test_a_dependency_gets_the_parameter_as_well(sources: Sources) -> None:
    sources.add(
        "routes.py",
        """
        from typing import Annotated
        from fastapi import APIRouter, Depends
        from module import visitor

        router = APIRouter()

        @router.get("/")
        async def home(name: Annotated[str, Depends(visitor)]) -> str:
            return name
        """,
    )
    text = sources.moved(
        in_app("""
        async def visitor() -> str:
            asyncio.create_task(track("visit"))
            return "me"
        """)
    )
    assert 'async def visitor(tasks: Tasks) -> str:\n    tasks.schedule(track, "visit")\n' in text


def test_an_endpoint_that_the_project_calls_itself_keeps_its_parameters(sources: Sources) -> None:
    text = sources.moved(
        in_app("""
        @app.get("/")
        async def home() -> str:
            asyncio.create_task(track("home"))
            return "hello"

        async def preview() -> str:
            return await home()
        """)
    )
    assert 'async def home() -> str:\n    current_tasks().schedule(track, "home")\n' in text


def test_a_decorator_of_another_framework_makes_no_endpoint(sources: Sources) -> None:
    text = sources.moved(
        in_app("""
        import mocks

        @mocks.get("/")
        async def home() -> str:
            asyncio.create_task(track("home"))
            return "hello"
        """)
    )
    assert "async def home() -> str:\n    current_tasks()" in text


def test_a_parameter_that_is_there_is_used(sources: Sources) -> None:
    text = sources.moved(
        in_app("""
        from tasks_fastapi import Tasks

        @app.get("/")
        async def home(jobs: Tasks) -> None:
            asyncio.create_task(track("home"), name="statistics")
        """)
    )
    assert '    jobs.task(name="statistics").schedule(track, "home")\n' in text
    assert text.count("tasks_fastapi") == 1


def test_names_from_other_modules_of_the_project_are_found(sources: Sources) -> None:
    sources.add("shop/__init__.py", "")
    sources.add("shop/mail/__init__.py", "from .sending import send as send\n")
    sources.add("shop/mail/sending.py", "async def send(address: str) -> None: ...\n")
    text = sources.moved("""
        import asyncio as aio
        from asyncio import create_task, ensure_future
        from shop import mail
        from shop.mail import send
        import shop.mail.sending

        async def service() -> None:
            aio.create_task(mail.send("a"))
            create_task(send("b"))
            ensure_future(shop.mail.sending.send("c"))
        """)
    assert 'schedule(mail.send, "a")' in text
    assert 'schedule(send, "b")' in text
    assert 'schedule(shop.mail.sending.send, "c")' in text
    assert "aio" not in text
    assert "from asyncio" not in text


def test_layout_and_comments_are_kept(sources: Sources) -> None:
    assert sources.moved(
        in_app("""
        @app.get("/")
        async def home(
            name: str,  # of the visitor
            age: int,
        ) -> None:
            # one
            asyncio.create_task(
                track(
                    "home",  # two
                    # three
                    count=age,
                )
            )
            asyncio.create_task(
                track("much", count=1)
            )
            asyncio.create_task(track(
                "more",
            ))
            asyncio.create_task( track( 'odd',count = 3 ) )
            s = 'kept'; print (s )
        """)
    ).partition("@app")[2] == dedent("""
        .get("/")
        async def home(
            name: str,  # of the visitor
            age: int,
            tasks: Tasks,
        ) -> None:
            # one
            tasks.schedule(
                track,
                "home",  # two
                # three
                count=age,
            )
            tasks.schedule(
                track, "much", count=1
            )
            tasks.schedule(
                track,
                "more",
            )
            tasks.schedule( track, 'odd',count = 3 )
            s = 'kept'; print (s )
        """)


def test_an_import_that_is_still_used_stays(sources: Sources) -> None:
    text = sources.moved(
        in_app("""
        async def service() -> None:
            asyncio.create_task(track("a"))
            await asyncio.sleep(0)
        """)
    )
    assert text.startswith("import asyncio\n")


@pytest.mark.parametrize(
    "line, stays",
    [
        ("from sqlalchemy.ext.asyncio import AsyncSession  # asyncio", False),
        ('__all__ = ["asyncio"]', True),
        ('loop: "asyncio.AbstractEventLoop"', True),
    ],
)
def test_an_import_that_nothing_mentions_is_removed(line: str, stays: bool, sources: Sources) -> None:
    text = sources.moved(in_app(f"{line}\n\nasync def service():\n    asyncio.create_task(track('a'))\n"))
    assert ("import asyncio\n" in text) == stays


LEFT_CREATE_TASK = {
    "a result that is used": ("task = asyncio.create_task(track('a'))", "its result is used"),
    "a result that is awaited": ("await asyncio.create_task(track('a'))", "its result is used"),
    "a coroutine in a variable": ("coroutine = track('a'); asyncio.create_task(coroutine)", "not a call such as f(x)"),
    "an option": ("asyncio.create_task(track('a'), context=None)", "it has options other than name="),
    "a function of another library": ("asyncio.create_task(asyncio.sleep(1))", "does not show that asyncio.sleep is"),
    "a method of an unknown object": ("asyncio.create_task(thing.close())", "does not show that thing.close is"),
    "a plain function": ("asyncio.create_task(plain())", "plain is a plain `def`, which a task would run in a thread"),
    "a decorated function": ("asyncio.create_task(decorated())", "decorated is decorated with @unknown"),
    "a function that is bound twice": ("asyncio.create_task(twice())", "does not show that twice is"),
    "a function that is replaced at run time": ("asyncio.create_task(replaced())", "does not show that replaced is"),
    "an asynchronous generator": ("asyncio.create_task(generate())", "generate is an asynchronous generator"),
    "a generator expression": ("asyncio.create_task(track(x for x in 'a'))", "its argument is a generator expression"),
    "a comment around the coroutine": (
        "asyncio.create_task(  # important\n        track('a')\n    )",
        "a comment stands around the coroutine",
    ),
    "a service": ("asyncio.create_task(poll())", "poll may run as long as the application"),
    "a loop that sleeps": ("asyncio.create_task(pause())", "pause may run as long as the application"),
    "an unknown event loop": (
        "loop = asyncio.get_event_loop(); loop.create_task(track('a'))",
        "known at run time only",
    ),
    "a handler that would catch more": (
        "try:\n        asyncio.create_task(track('a'))\n    except RuntimeError:\n        plain()",
        "the `except RuntimeError` around it",
    ),
    "a handler that would hide an error": (
        "try:\n        asyncio.create_task(track('a'))\n    except Exception:\n        pass",
        "would hide that current_tasks() found no application",
    ),
}


@pytest.mark.parametrize("case", LEFT_CREATE_TASK)
def test_what_is_not_certain_is_left(case: str, sources: Sources) -> None:
    statement, reason = LEFT_CREATE_TASK[case]
    source = in_app("""
        from unknown_library import thing, unknown

        def plain(): ...

        @unknown
        async def decorated(): ...

        async def twice(): ...
        if app:
            def twice(): ...

        async def generate():
            yield 1

        async def replaced(): ...

        def replace():
            global replaced
            replaced = plain

        async def poll():
            while True:
                await thing.get()

        async def pause():
            while thing.goes_on():
                await asyncio.sleep(1)

        async def service():
            STATEMENT
        """)
    assert reason in sources.left(source.replace("STATEMENT", statement))


def test_a_method_that_a_plain_function_may_override_is_left(sources: Sources) -> None:
    assert "may be overridden by a plain `def notify`" in sources.left(
        in_app("""
        class Base:
            async def create(self):
                asyncio.create_task(self.notify())

            async def notify(self): ...

        class Special(Base):
            def notify(self):
                return track("special")
        """)
    )


@pytest.mark.parametrize(
    "start, reason",
    [
        ("asyncio.run(service())", "service is started by run()"),
        ("scheduler.add_job(service, 'interval')", "service is started by add_job()"),
    ],
)
def test_a_function_that_something_else_starts_is_left(start: str, reason: str, sources: Sources) -> None:
    source = in_app("""
        async def service():
            asyncio.create_task(track("a"))
        """)
    assert reason in sources.left(f"{source}\n{start}\n")


def test_lifespans_and_tests_are_left(sources: Sources) -> None:
    path = sources.add("test_module.py", in_app("async def test_it():\n    asyncio.create_task(track('a'))\n"))
    before = path.read_text()
    output = sources.left(
        in_app("""
        from contextlib import asynccontextmanager

        @asynccontextmanager
        async def lifespan(app):
            asyncio.create_task(track("a"))
            yield
        """)
    )
    assert "it is in a lifespan" in output
    assert "service(" not in output
    assert "this is a test, which no application runs" in output
    assert path.read_text() == before


@pytest.mark.parametrize(
    "statement",
    ["loops = [asyncio.create_task(poll(1))]", "app.state.loop = asyncio.create_task(poll(1), name='poll')"],
)
@pytest.mark.parametrize("decorator", ["@asynccontextmanager", "@app.on_event('startup')"])
def test_a_task_of_a_lifespan_whose_result_is_used_is_left_with_the_advice_to_make_it_a_service(
    decorator: str, statement: str, sources: Sources
) -> None:
    source = in_app(f"""
        from contextlib import asynccontextmanager

        async def poll(seconds): ...

        {decorator}
        async def lifespan(app):
            {statement}
            yield
        """)
    assert (
        "it is in a lifespan and its result is used: if poll runs as long as the application, "
        "write get_scheduler(app).service(poll, ...), which is cancelled at shutdown\n"
    ) in sources.left(source)


def test_a_used_task_of_a_lifespan_that_is_not_made_from_a_call_is_left(sources: Sources) -> None:
    source = in_app("""
        @app.on_event("startup")
        async def start(coroutine):
            task = asyncio.create_task(coroutine)
        """)
    assert "its result is used, and a Task has other methods" in sources.left(source)


def test_a_decorator_of_the_project_that_returns_a_coroutine_function_is_understood(sources: Sources) -> None:
    text = sources.moved(
        in_app("""
        from functools import wraps

        def logged(func):
            @wraps(func)
            async def wrapper(*args):
                return await func(*args)
            return wrapper

        @logged
        async def work(number): ...

        async def service():
            asyncio.create_task(work(1))
        """)
    )
    assert "current_tasks().schedule(work, 1)" in text


# BackgroundTasks


def test_add_task_of_an_endpoint_uses_tasks(sources: Sources) -> None:
    text = sources.moved(
        BACKGROUND
        + dedent("""
        @router.post("/")
        async def create(
            address: str,
            background: BackgroundTasks,  # for the mail
            options: Annotated[dict, Depends(settings)],
            db=Depends(session),
        ) -> None:
            if address:
                background.add_task(send, address, subject="Welcome")  # one
            else:
                background.add_task(send, options["default"], subject=str(db))
        """)
    )
    assert text.partition("async def create")[2] == dedent("""
        (
            address: str,
            tasks: Tasks,  # for the mail
            options: Annotated[dict, Depends(settings)],
            db=Depends(session),
        ) -> None:
            if address:
                tasks.add_task(send, address, subject="Welcome")  # one
            else:
                tasks.add_task(send, options["default"], subject=str(db))
        """)
    assert "from fastapi import APIRouter, Depends, UploadFile\nfrom tasks_fastapi import Tasks\n" in text


LEFT_ADD_TASK = {
    "two tasks": ("", "background.add_task(send, 'a')\nbackground.add_task(send, 'b')", "--assume order"),
    "a loop": ("", "for one in address:\n    background.add_task(send, one)", "--assume order"),
    "a session": (", db=Depends(session)", "background.add_task(send, address, db)", "--assume values"),
    "what is made from a session": (
        ", db=Depends(session)",
        "row = db.find()\nbackground.add_task(send, row.id)",
        "row.id may use db, which is closed when the task runs (--assume values)",
    ),
    "what a session was put into": (
        ", db=Depends(session)",
        "found = []\nfound.append(db)\nbackground.add_task(send, found)",
        "--assume values",
    ),
    "a session of a dependency": (", who=Depends(user)", "background.add_task(send, who)", "--assume values"),
    "an uploaded file": (", file: UploadFile", "background.add_task(send, file)", "--assume values"),
    "a function of a session": (", db=Depends(session)", "background.add_task(db.save, 1)", "--assume values"),
    "another use": ("", "background.add_task(send, 'a')\nsend(background)", "is used for more than add_task"),
    "a nested function": ("", "def later():\n    background.add_task(send, 'a')\nlater()", "may run at another time"),
    "an optional parameter": (" = None", "background.add_task(send, 'a')", "may be something else"),
}


@pytest.mark.parametrize("case", LEFT_ADD_TASK)
def test_add_task_is_left_where_its_meaning_might_change(case: str, sources: Sources) -> None:
    parameters, body, reason = LEFT_ADD_TASK[case]
    assert reason in sources.left(endpoint(parameters, body))


def test_assumptions_of_the_developer_move_more(sources: Sources) -> None:
    source = endpoint(", db=Depends(session)", "background.add_task(send, db.id)\nbackground.add_task(send, 'b')")
    sources.left(source)
    sources.left(source, "--assume", "order")
    sources.left(source, "--assume", "values")
    text = sources.moved(source, "--assume", "order", "--assume", "values")
    assert "tasks.add_task(send, db.id)\n    tasks.add_task(send, 'b')" in text


def test_a_method_of_the_same_name_is_no_direct_call(sources: Sources) -> None:
    text = sources.moved(endpoint("", "background.add_task(send, 'a')\naddress.create(1)"))
    assert "tasks.add_task(send, 'a')" in text


def test_create_task_in_a_plain_endpoint_is_left(sources: Sources) -> None:
    assert "home is a plain `def`, in whose thread asyncio.create_task always fails" in sources.left(
        in_app("""
        @app.get("/")
        def home():
            asyncio.create_task(track("a"))
        """)
    )


def test_a_file_that_is_nested_too_deeply_is_listed(sources: Sources) -> None:
    """The parser raises `MemoryError` for it."""
    sources.add("module.py", "x = " + "-" * 10_000 + "1\n")
    code, output = sources.run("--write")
    assert code == 3
    assert "module.py: " in output


def test_all_calls_of_a_parameter_are_moved_or_none(sources: Sources) -> None:
    output = sources.left(
        endpoint(
            ", db=Depends(session)",
            "if address:\n    background.add_task(send, address)\nelse:\n    background.add_task(send, db)",
        )
    )
    assert output.count("--assume values") == 2


@pytest.mark.parametrize("argument", ["me.id", "me.email", "f'{me.owner}'", "str(me.owner)"])
def test_a_value_that_is_read_from_what_a_dependency_closes_is_moved(argument: str, sources: Sources) -> None:
    source = (
        BACKGROUND
        + MODELS
        + ENDPOINT.format(
            parameters=", me: CurrentUser",
            body=f"    found = {argument}\n    background.add_task(send, found, {argument})",
        )
    )
    assert f"tasks.add_task(send, found, {argument})" in sources.moved(source)


def test_a_class_of_the_project_with_the_name_of_a_value_type_is_no_value(sources: Sources) -> None:
    models = MODELS.replace("email: Mapped[str | None]", "email: Mapped[date]") + "\n\nclass date: ...\n"
    source = (
        BACKGROUND
        + models
        + ENDPOINT.format(parameters=", me: CurrentUser", body="    background.add_task(send, me.email)")
    )
    assert "me.email may use me" in sources.left(source)


@pytest.mark.parametrize("argument", ["me", "me.owner", "me.friends", "me.missing", "me.owner.id"])
def test_an_object_that_is_read_from_what_a_dependency_closes_is_left(argument: str, sources: Sources) -> None:
    source = (
        BACKGROUND
        + MODELS
        + ENDPOINT.format(parameters=", me: CurrentUser", body=f"    background.add_task(send, {argument})")
    )
    assert f"{argument} may use me, which is closed" in sources.left(source)


def test_an_endpoint_and_its_dependency_that_both_add_tasks_have_an_order(sources: Sources) -> None:
    source = (
        BACKGROUND
        + "def audit(background: BackgroundTasks, address: str):\n    background.add_task(send, address)\n"
        + ENDPOINT.format(parameters=", _=Depends(audit)", body="    background.add_task(send, 'a')")
    )
    output = sources.left(source)
    assert "the endpoint may add tasks that run after it" in output
    assert "a dependency adds tasks that run before it" in output
    text = sources.moved(source, "--assume", "order")
    assert "def audit(tasks: Tasks, address: str):\n    tasks.add_task(send, address)\n" in text
    assert "tasks.add_task(send, 'a')" in text


def test_add_task_of_a_websocket_is_left(sources: Sources) -> None:
    source = endpoint("", "background.add_task(send, 'a')").replace("@router.post", "@router.websocket")
    assert "BackgroundTasks of a WebSocket never run" in sources.left(source)


def test_add_task_in_a_service_is_left(sources: Sources) -> None:
    source = BACKGROUND + "def service(background: BackgroundTasks):\n    background.add_task(send, 'a')\n"
    assert "service is neither an endpoint nor a dependency: its caller passes background" in sources.left(source)


def test_an_endpoint_that_is_called_directly_is_left(sources: Sources) -> None:
    source = endpoint("", "background.add_task(send, 'a')") + "\ncreate('a', BackgroundTasks())\n"
    assert "create is called directly, at" in sources.left(source)


def test_both_kinds_in_one_endpoint_share_the_parameter(sources: Sources) -> None:
    text = sources.moved(
        BACKGROUND
        + dedent("""
        import asyncio

        async def track(): ...

        @router.post("/")
        async def create(background: BackgroundTasks) -> None:
            background.add_task(send, "a")
            asyncio.create_task(track())
        """)
    )
    assert 'async def create(tasks: Tasks) -> None:\n    tasks.add_task(send, "a")\n    tasks.schedule(track)' in text


# BackgroundTask of a response


def test_the_background_of_a_response_comes_before_the_return(sources: Sources) -> None:
    text = sources.moved(
        RESPONSE
        + dedent("""
        @router.get("/")
        async def home(name: str):
            # the answer
            return JSONResponse(
                {"name": name},
                status_code=202,
                background=BackgroundTask(send, name, subject="a"),
            )
        """)
    )
    assert text.partition("async def home")[2] == dedent("""
        (name: str, tasks: Tasks):
            # the answer
            tasks.add_task(send, name, subject="a")
            return JSONResponse(
                {"name": name},
                status_code=202,
            )
        """)
    assert "BackgroundTask" not in text.replace("BackgroundTasks", "")


@pytest.mark.parametrize(
    "body, reason",
    [
        (
            "return FileResponse('a', background=BackgroundTask(send, 'a'))",
            "a FileResponse does not run it after every",
        ),
        ("return JSONResponse({}, background=BackgroundTask(send, next(names)))", "would be evaluated before"),
        (
            "task = BackgroundTask(send, 'a')\nreturn JSONResponse({}, background=task)",
            "it is not written as background=",
        ),
        ("r = JSONResponse({}, background=BackgroundTask(send, 'a'))\nreturn r", "not returned in the same statement"),
        ("return unknown({}, background=BackgroundTask(send, 'a'))", "unknown is not a response of FastAPI"),
    ],
)
def test_other_backgrounds_of_responses_are_left(body: str, reason: str, sources: Sources) -> None:
    source = RESPONSE + '@router.get("/")\nasync def home(names=()):\n' + textwrap.indent(body, "    ") + "\n"
    assert reason in sources.left(source)


def test_a_return_on_the_line_of_its_if_is_left_with_the_whole_file(sources: Sources) -> None:
    source = RESPONSE + dedent("""
        @router.get("/")
        async def home():
            if router: return JSONResponse({}, background=BackgroundTask(send, "a"))
        """)
    assert "nothing in this file is changed: line" in sources.left(source)


@pytest.mark.parametrize(
    "decorator, parameter, reason",
    [
        ('@router.get("/")', "names: BackgroundTasks", "the endpoint has BackgroundTasks as well"),
        ("", "names=()", "home is not an endpoint"),
        ('@router.get("/")\n@sources.cached', "names=()", "has other decorators"),
    ],
)
def test_the_background_of_a_response_that_may_not_be_sent_is_left(
    decorator: str, parameter: str, reason: str, sources: Sources
) -> None:
    body = "return JSONResponse({}, background=BackgroundTask(send, 'a'))"
    assert reason in sources.left(f"{RESPONSE}{decorator}\nasync def home({parameter}):\n    {body}\n")


# repeat_every


def test_repeat_every_is_listed(sources: Sources) -> None:
    output = sources.left("""
        from fastapi_utils.tasks import repeat_every

        @repeat_every(seconds=60)
        def clean_up(): ...
        """)
    assert "repeat_every: it pauses after each run" in output
    assert "schedule(clean_up)" in output


# The command


def test_without_write_a_diff_is_shown_and_nothing_is_changed(sources: Sources) -> None:
    path = sources.add("module.py", in_app("async def service():\n    asyncio.create_task(track('a'))\n"))
    before = path.read_bytes()
    code, output = sources.run()
    assert code == 1
    assert path.read_bytes() == before
    assert f"--- {path}\n+++ {path}\n" in output
    assert "-    asyncio.create_task(track('a'))\n+    current_tasks().schedule(track, 'a')\n" in output
    assert f"Would be moved:\n  {path}:12: create_task -> current_tasks().schedule(track, ...)\n" in output
    assert "1 call: 1 would be moved, 0 left. 1 file would be changed with --write." in output
    code, output = sources.run("--no-diff")
    assert code == 1
    assert "+++" not in output


def test_a_file_that_does_not_parse_is_listed_and_the_others_are_moved(sources: Sources) -> None:
    broken = sources.add("broken.py", "import asyncio\nasyncio.create_task(\n")
    path = sources.add("module.py", in_app("async def service():\n    asyncio.create_task(track('a'))\n"))
    code, output = sources.run("--write")
    assert code == 3
    assert f"Not handled:\n  {broken}: line 2: '(' was never closed\n" in output
    assert "current_tasks().schedule(track, 'a')" in path.read_text()
    assert broken.read_text() == "import asyncio\nasyncio.create_task(\n"


def test_a_call_in_a_file_that_does_not_parse_counts_as_a_direct_call(sources: Sources) -> None:
    sources.add("broken.py", "create('a', None\n")
    path = sources.add("module.py", endpoint("", "background.add_task(send, 'a')"))
    before = path.read_text()
    code, output = sources.run("--write")
    assert code == 3
    assert "create is called directly, at" in output
    assert path.read_text() == before


def test_bytes_that_are_no_call_are_kept(sources: Sources) -> None:
    path = sources.folder / "module.py"
    source = (
        "# -*- coding: latin-1 -*-\r\nimport asyncio\r\nName = 'é'\r\nasync def f(x): ...\r\n"
        "async def g():\r\n\tasyncio.create_task(f('é'))"
    )
    path.write_bytes(source.encode("latin-1"))
    path.chmod(0o640)
    assert sources.run("--write")[0] == 0
    expected = source.replace("asyncio.create_task(f('é'))", "current_tasks().schedule(f, 'é')")
    expected = expected.replace("import asyncio\r\n", "from tasks_fastapi import current_tasks\r\n")
    assert path.read_bytes() == expected.encode("latin-1")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [file.name for file in sources.folder.iterdir() if file.name.startswith(".")] == []


def test_a_file_that_cannot_be_written_is_listed(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    path = sources.add("module.py", in_app("async def service():\n    asyncio.create_task(track('a'))\n"))
    before = path.read_bytes()

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)
    code, output = sources.run("--write")
    assert code == 3
    assert "create_task: the file could not be written" in output
    assert f"Not handled:\n  {path}: Permission denied\n" in output
    assert "0 files changed" in output
    assert path.read_bytes() == before
    assert [file.name for file in sources.folder.iterdir() if file.name.startswith(".")] == []


@pytest.mark.parametrize(
    "path, message", [("nowhere", "which does not exist"), ("pyproject.toml", "which is no Python file")]
)
def test_a_wrong_path_is_an_error_that_says_what_is_allowed(
    path: str, message: str, sources: Sources, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exited:
        main([str(sources.folder / path)])
    assert exited.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Allowed are" in error


def test_the_command_runs_as_a_module(sources: Sources) -> None:
    sources.add("module.py", in_app("async def service():\n    asyncio.create_task(track('a'))\n"))
    command = [sys.executable, "-m", "tasks_fastapi.move", str(sources.folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1, result.stderr
    assert "1 would be moved" in result.stdout


def test_without_libcst_the_command_says_what_to_install(sources: Sources) -> None:
    code = (
        "import sys, runpy; sys.modules['libcst'] = None; runpy.run_module('tasks_fastapi.move', run_name='__main__')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "pip install 'tasks-fastapi[move]'" in result.stderr


# Moved code runs

SHOP = """
import asyncio

from fastapi import BackgroundTasks, FastAPI
from fastapi.responses import JSONResponse
from starlette.background import BackgroundTask
from tasks_fastapi import add_tasks

from services import Orders, record

app = FastAPI()
add_tasks(app)


async def track(event: str, *, count: int = 1) -> None:
    record(f"track {event} {count}")


def send(address: str) -> None:
    record(f"send {address}")


@app.post("/orders")
async def create_order(name: str, background_tasks: BackgroundTasks) -> dict[str, str]:
    asyncio.create_task(track("order", count=2), name="statistics")
    background_tasks.add_task(send, name)
    await Orders().created(name)
    return {"name": name}


@app.get("/refused")
async def refused():
    return JSONResponse({}, 409, background=BackgroundTask(send, "refused"))
"""

SERVICES = """
import asyncio

events = []


def record(event):
    events.append(event)


class Orders:
    async def created(self, name):
        asyncio.create_task(self._notify(name))

    async def _notify(self, name):
        record(f"notify {name}")
"""


def test_moved_code_runs_and_its_tasks_run(sources: Sources, load: Callable[[str], ModuleType]) -> None:
    sources.add("shop_app.py", SHOP)
    sources.add("services.py", SERVICES)
    code, output = sources.run("--write")
    assert code == 0
    assert "4 calls: 4 moved, 0 left. 2 files changed." in output
    assert "create_task" not in (sources.folder / "shop_app.py").read_text()
    app = load("shop_app").app
    with TestClient(app) as client:
        assert client.post("/orders?name=ann").json() == {"name": "ann"}
        assert client.get("/refused").status_code == 409
    # The scheduler has drained.
    assert sorted(load("services").events) == ["notify ann", "send ann", "send refused", "track order 2"]

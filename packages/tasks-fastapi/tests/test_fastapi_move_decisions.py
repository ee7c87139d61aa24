"""`python -m tasks_fastapi.move`: one short program for each reason to move a call, or to leave it."""

import sys
import textwrap

import pytest
from move_sources import BACKGROUND, MODELS, RESPONSE, Sources, dedent, in_app, sources

__all__ = ("sources",)

MOVED_CREATE_TASK = {
    "a static method": (
        """
        class Orders:
            @staticmethod
            async def count(): ...

            async def create(self):
                asyncio.create_task(self.count())
        """,
        "current_tasks().schedule(self.count)",
    ),
    "a decorator that returns the function, under another name": (
        """
        from typing import override as overrides

        class Orders:
            @overrides
            async def count(self): ...

            async def create(self):
                asyncio.create_task(self.count())
        """,
        "current_tasks().schedule(self.count)",
    ),
    "an endpoint as a task": (
        """
        @app.get("/")
        async def home(): ...

        async def service():
            asyncio.create_task(home())
        """,
        "current_tasks().schedule(home)",
    ),
    "an exception handler is no endpoint": (
        """
        @app.exception_handler(ValueError)
        async def refuse(request, error):
            asyncio.create_task(track("refused"))
        """,
        'async def refuse(request, error):\n    current_tasks().schedule(track, "refused")',
    ),
    "another class of the name Tasks": (
        """
        from models import Tasks

        @app.get("/")
        async def home():
            asyncio.create_task(track("home"))
        """,
        'async def home():\n    current_tasks().schedule(track, "home")',
    ),
    "a variable of the name tasks": (
        """
        @app.get("/")
        async def home():
            tasks = []
            asyncio.create_task(track("home"))
        """,
        '    tasks = []\n    current_tasks().schedule(track, "home")',
    ),
    "current_tasks() is imported": (
        """
        from tasks_fastapi import current_tasks

        async def service():
            asyncio.create_task(track("a"))
        """,
        'current_tasks().schedule(track, "a")',
    ),
    "a name with values": (
        """
        async def service(order):
            asyncio.create_task(track("a"), name=f"order {order.id} of {order.day:{order.width}}")
        """,
        'current_tasks().task(name=f"order {order.id} of {order.day:{order.width}}").schedule(track, "a")',
    ),
    "a loop with an end": (
        """
        async def drain(queue):
            while True:
                if not queue:
                    break

        async def shrink(queue):
            while queue:
                queue.pop()

        async def service(queue):
            asyncio.create_task(drain(queue))
            asyncio.create_task(shrink(queue))
        """,
        "current_tasks().schedule(drain, queue)\n    current_tasks().schedule(shrink, queue)",
    ),
    "a handler itself": (
        """
        async def service():
            try:
                await track("a")
            except RuntimeError:
                asyncio.create_task(track("failed"))
        """,
        'current_tasks().schedule(track, "failed")',
    ),
    "a handler that raises": (
        """
        async def service():
            try:
                asyncio.create_task(track("a"))
            except:
                raise
        """,
        'current_tasks().schedule(track, "a")',
    ),
    "other context managers": (
        """
        from contextlib import suppress

        async def service(lock, path):
            with suppress(KeyError), lock, open(path):
                asyncio.create_task(track("a"))
        """,
        'current_tasks().schedule(track, "a")',
    ),
    "an import inside of the function": (
        """
        asyncio = None

        async def service():
            import asyncio
            asyncio.create_task(track("a"))
        """,
        '    import asyncio\n    current_tasks().schedule(track, "a")',
    ),
}


@pytest.mark.parametrize("case", MOVED_CREATE_TASK)
def test_create_task_whose_meaning_stays_is_moved(case: str, sources: Sources) -> None:
    source, expected = MOVED_CREATE_TASK[case]
    text = sources.moved(in_app(source))
    assert expected in text
    assert text.count("create_task") == 0


LEFT_CREATE_TASK = {
    "no function": ("asyncio.create_task(track('a'))", "it is not in a function"),
    "a scheduled job": (
        """
        @scheduler.scheduled_job("interval", minutes=1)
        async def clean():
            asyncio.create_task(track("a"))
        """,
        "clean is started by @scheduled_job: use get_scheduler(app).periodic(...) for it first",
    ),
    "another function of the name current_tasks": (
        """
        from celery import current_tasks

        async def service():
            asyncio.create_task(track("a"))
        """,
        "the name current_tasks has another meaning here",
    ),
    "a name that a call makes": (
        """
        async def service(order):
            asyncio.create_task(track("a"), name=f"order {order.pop()}")
        """,
        'it has options other than name="text"',
    ),
    "suppressed errors": (
        """
        from contextlib import suppress

        async def service():
            with suppress(RuntimeError):
                asyncio.create_task(track("a"))
        """,
        "the `except RuntimeError` around it would catch the errors of schedule() as well",
    ),
    "an event loop that a call returns": (
        """
        async def service(loop):
            loop().create_task(track("a"))
        """,
        "loop() is an event loop that is known at run time only",
    ),
}


@pytest.mark.parametrize("case", LEFT_CREATE_TASK)
def test_create_task_whose_meaning_might_change_is_left(case: str, sources: Sources) -> None:
    source, reason = LEFT_CREATE_TASK[case]
    assert reason in sources.left(in_app(source))


MOVED_ADD_TASK = {
    "parameters without annotations": (
        """
        @router.get("/")
        def home(name, background: BackgroundTasks):
            background.add_task(send, name)
        """,
        "def home(name, tasks: Tasks):\n    tasks.add_task(send, name)",
    ),
    "a dependency that is a class of values": (
        """
        class Pager:
            def __init__(self, limit: int = 10): ...

        @router.get("/")
        def home(background: BackgroundTasks, pager: Pager = Depends()):
            background.add_task(send, pager)
        """,
        "tasks.add_task(send, pager)",
    ),
    "a dependency that is a class without parameters": (
        """
        class Pager: ...

        @router.get("/")
        def home(background: BackgroundTasks, pager=Depends(Pager)):
            background.add_task(send, pager)
        """,
        "tasks.add_task(send, pager)",
    ),
    "a dependency that two others need": (
        """
        def first(options=Depends(settings)): ...

        def second(options=Depends(settings)): ...

        def both(one=Depends(first), two=Depends(second)): ...

        @router.get("/")
        def home(background: BackgroundTasks, pair=Depends(both)):
            background.add_task(send, pair)
        """,
        "tasks.add_task(send, pair)",
    ),
    "one task in each case": (
        """
        @router.get("/")
        def home(background: BackgroundTasks, name: str):
            match name:
                case "a":
                    background.add_task(send, "first")
                case _:
                    background.add_task(send, "second")
        """,
        '            tasks.add_task(send, "first")\n        case _:\n            tasks.add_task(send, "second")',
    ),
    "one task in each handler": (
        """
        @router.get("/")
        def home(background: BackgroundTasks, name: str):
            try:
                int(name)
            except ValueError:
                background.add_task(send, "first")
            except TypeError:
                with open(name):
                    background.add_task(send, "second")
        """,
        'except ValueError:\n        tasks.add_task(send, "first")',
    ),
}


@pytest.mark.parametrize("case", MOVED_ADD_TASK)
def test_add_task_whose_meaning_stays_is_moved(case: str, sources: Sources) -> None:
    source, expected = MOVED_ADD_TASK[case]
    text = sources.moved(BACKGROUND + dedent(source))
    assert expected in text
    assert text.count("add_task") == text.count("tasks.add_task")


CLOSED = "is closed when the task runs (--assume values)"
ORDER = "(--assume order)"

LEFT_ADD_TASK = {
    "an object that is made by hand": (
        "",
        "later = BackgroundTasks()\nlater.add_task(send, 'a')",
        "later is made by hand, and is for one response",
    ),
    "an object of the module": (
        "",
        "later.add_task(send, 'a')",
        "the project does not show that later is a BackgroundTasks object",
    ),
    "an attribute": (
        "",
        "router.later.add_task(send, 'a')",
        "the project does not show that router.later is a BackgroundTasks object",
    ),
    "a result that is used": ("", "added = background.add_task(send, 'a')", "the result of add_task is used"),
    "a function by keyword": ("", "background.add_task(func=send)", "its function is not the first argument"),
    "unpacked arguments": ("", "background.add_task(*address)", "its function is not the first argument"),
    "an instance": (", self=None", "background.add_task(send, self.name)", f"self.name may use self, which {CLOSED}"),
    "an annotation in quotes": (
        ', file: "UploadFile" = None',
        "background.add_task(send, file)",
        f"file may use file, which {CLOSED}",
    ),
    "a dependency of another library": (
        ", who=Depends(router.current)",
        "background.add_task(send, who)",
        f"who may use who, which {CLOSED}",
    ),
    "a dependency that the annotation names": (
        ", opened: Opened = Depends()",
        "background.add_task(send, opened)",
        f"opened may use opened, which {CLOSED}",
    ),
    "a dependency that is named by keyword": (
        ", opened: Pager = Depends(dependency=session)",
        "background.add_task(send, opened)",
        f"opened may use opened, which {CLOSED}",
    ),
    "a dependency that the annotation names inside of Annotated": (
        ", opened: Annotated[Opened, Depends()]",
        "background.add_task(send, opened)",
        f"opened may use opened, which {CLOSED}",
    ),
    "a dependency behind two aliases": (
        ", me: Me",
        "background.add_task(send, me)",
        f"me may use me, which {CLOSED}",
    ),
    "a dependency in Annotated inside of Annotated": (
        ', me: Annotated[Me, "the user"]',
        "background.add_task(send, me)",
        f"me may use me, which {CLOSED}",
    ),
    "aliases of one another": (
        ", me: Egg, db=Depends(session)",
        "background.add_task(send, me.id, db)",
        f"db may use db, which {CLOSED}",
    ),
    "a dependency that nothing names": (
        ", who=Depends()",
        "background.add_task(send, who)",
        f"who may use who, which {CLOSED}",
    ),
    "a dependency that is a class with a base": (
        ", who=Depends(Derived)",
        "background.add_task(send, who)",
        f"who may use who, which {CLOSED}",
    ),
    "a dependency with an uploaded file": (
        ", picture=Depends(upload)",
        "background.add_task(send, picture)",
        f"picture may use picture, which {CLOSED}",
    ),
    "another object in the same variable": (
        ", me: CurrentUser",
        "me = router.load(me)\nbackground.add_task(send, me.id)",
        f"me.id may use me, which {CLOSED}",
    ),
    "a keyword of a call": (
        ", db=Depends(session)",
        "background.add_task(send, dict(db=db))",
        f"dict(db=db) may use db, which {CLOSED}",
    ),
    "a comprehension": (
        ", db=Depends(session)",
        "background.add_task(send, [1 for row in db])",
        f"[1 for row in db] may use db, which {CLOSED}",
    ),
    "a variable with an annotation": (
        ", db=Depends(session)",
        "rows: list = db.all()\nbackground.add_task(send, rows)",
        f"rows may use db, which {CLOSED}",
    ),
    "the variable of a loop": (
        ", db=Depends(session)",
        "for row in db:\n    pass\nbackground.add_task(send, row)",
        f"row may use db, which {CLOSED}",
    ),
    "the variable of a context manager": (
        ", db=Depends(session)",
        "with router.lock, db.begin() as begun:\n    background.add_task(send, begun)",
        f"begun may use db, which {CLOSED}",
    ),
    "two tasks in a context manager": (
        "",
        "with router:\n    background.add_task(send, 'a')\n    background.add_task(send, 'b')",
        ORDER,
    ),
    "two tasks in one case": (
        "",
        "match address:\n    case _:\n        background.add_task(send, 'a')\n        background.add_task(send, 'b')",
        ORDER,
    ),
    "a task in a handler and one behind it": (
        "",
        "try:\n    pass\nexcept ValueError:\n    background.add_task(send, 'a')\nbackground.add_task(send, 'b')",
        ORDER,
    ),
    "a task with and one without an error": (
        "",
        "try:\n    background.add_task(send, 'a')\nfinally:\n    background.add_task(send, 'b')",
        ORDER,
    ),
}

DEPENDENCIES = """
class Opened:
    def __init__(self, db=Depends(session)): ...


class Derived(router.Base): ...


class Pager: ...


Me = CurrentUser
Egg = Hen
Hen = Egg


def upload(file: UploadFile): ...

"""


@pytest.mark.parametrize("case", LEFT_ADD_TASK)
def test_add_task_whose_meaning_might_change_is_left(case: str, sources: Sources) -> None:
    parameters, body, reason = LEFT_ADD_TASK[case]
    lines = body.replace("\n", "\n    ")
    function = f'@router.post("/")\ndef create(address: str, background: BackgroundTasks{parameters}):\n    {lines}\n'
    assert reason in sources.left(BACKGROUND + MODELS + DEPENDENCIES + function)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the statement `type` came with Python 3.12")
def test_a_dependency_behind_a_type_statement_is_found(sources: Sources) -> None:
    source = """
        type Me = Annotated[User, Depends(session)]

        @router.post("/")
        def create(background: BackgroundTasks, me: Me):
            background.add_task(send, ARGUMENT)
        """
    source = BACKGROUND + MODELS + dedent(source)
    assert f"me may use me, which {CLOSED}" in sources.left(source.replace("ARGUMENT", "me"))
    assert "tasks.add_task(send, me.email)" in sources.moved(source.replace("ARGUMENT", "me.email"))


@pytest.mark.parametrize(
    "before, parameters, reason",
    [
        ("", "address, /, background: BackgroundTasks", "create has positional-only parameters"),
        (
            "from celery import Tasks\n",
            "address, background: BackgroundTasks",
            "the name Tasks has another meaning in this file",
        ),
    ],
)
def test_an_endpoint_that_cannot_have_the_parameter_is_left(
    before: str, parameters: str, reason: str, sources: Sources
) -> None:
    function = f'@router.post("/")\ndef create({parameters}):\n    background.add_task(send, "a")\n'
    assert reason in sources.left(BACKGROUND + before + function)


BACKGROUND_OF_A_RESPONSE = "return JSONResponse({}, background=BackgroundTask(send, 'a'))"

LEFT_RESPONSE = {
    "a direct call of an endpoint with tasks": (
        "from tasks_fastapi import Tasks\n\n"
        f'@router.get("/")\ndef home(tasks: Tasks):\n    {BACKGROUND_OF_A_RESPONSE}\n\nhome()\n',
        "home is called directly, or uses the names tasks or Tasks for something else",
    ),
    "a direct call": (
        f'@router.get("/")\ndef home():\n    {BACKGROUND_OF_A_RESPONSE}\n\nhome()\n',
        "home is called directly, or uses the names tasks or Tasks for something else",
    ),
    # Python parses it, and refuses to compile it.
    "no function": (f"{BACKGROUND_OF_A_RESPONSE}\n", "it is not in an endpoint"),
    "unpacked options": (
        '@router.get("/")\ndef home(options):\n    '
        "return JSONResponse({}, background=BackgroundTask(send, **options))\n",
        "its function is not the first argument",
    ),
    "a dependency with tasks": (
        'def audit(later: BackgroundTasks): ...\n\n@router.get("/")\n'
        f"def home(_=Depends(audit)):\n    {BACKGROUND_OF_A_RESPONSE}\n",
        "a dependency adds tasks, which this response replaces",
    ),
}


@pytest.mark.parametrize("case", LEFT_RESPONSE)
def test_the_background_of_a_response_whose_meaning_might_change_is_left(case: str, sources: Sources) -> None:
    source, reason = LEFT_RESPONSE[case]
    assert reason in sources.left(RESPONSE + source)


def test_the_background_of_a_response_is_moved_on_the_word_of_the_developer(sources: Sources) -> None:
    body = "return JSONResponse({}, background=BackgroundTask(send, db))"
    source = f'{RESPONSE}@router.get("/")\ndef home(db=Depends(session)):\n    {body}\n'
    assert f"db may use db, which {CLOSED}" in sources.left(source)
    text = sources.moved(source, "--assume", "values")
    assert "def home(tasks: Tasks, db=Depends(session)):\n    tasks.add_task(send, db)\n" in text


REPLACES = "its response may have a background of its own, which replaces the BackgroundTasks"

OWN_BACKGROUNDS = {
    "of a response": "return JSONResponse({}, background=BackgroundTask(send, 'b'))",
    "of one response of two": "if address:\n    return None\nreturn JSONResponse({}, background=BackgroundTask(send))",
    "of a stream": "return StreamingResponse([], background=BackgroundTask(send, 'b'))",
    "of a class that is unknown": "return unknown([], background=address)",
    "in a variable": "later = BackgroundTask(send, 'b')\nreturn JSONResponse({}, 200, None, None, later)",
    "made by hand": "return JSONResponse({}, 200, None, None, BackgroundTasks())",
    "that is assigned": "response = JSONResponse({})\nresponse.background = address\nreturn response",
    "of a function": "return stream()",
    "of a function that is passed on": "return run(stream)",
    "of a class of the project": "return Stream()",
    "of a decorated function": "return decorated()",
}


@pytest.mark.parametrize("case", OWN_BACKGROUNDS)
def test_an_endpoint_whose_response_may_have_a_background_is_left_whole(case: str, sources: Sources) -> None:
    source = """
        def stream(again=True):
            stream() if again else None
            return JSONResponse({}, background=BackgroundTask(send, "b"))

        class Stream(JSONResponse):
            def __init__(self):
                super().__init__({}, background=BackgroundTask(send, "b"))

        def with_background(function):
            return lambda: stream()

        @with_background
        def decorated(): ...

        @router.post("/")
        async def create(address: str, background: BackgroundTasks):
            background.add_task(send, "a")
        """
    body = textwrap.indent(OWN_BACKGROUNDS[case], "    ")
    imports = "from fastapi.responses import StreamingResponse\n"
    assert f"add_task: {REPLACES}" in sources.left(f"{RESPONSE}{imports}{dedent(source)}{body}\n", "--assume", "order")


def test_an_endpoint_whose_response_has_no_background_is_moved(sources: Sources) -> None:
    source = """
        def stream():
            return JSONResponse({}, background=None)

        @router.post("/")
        async def create(address: str, background: BackgroundTasks):
            background.add_task(send, address)
            return stream()
        """
    assert "tasks.add_task(send, address)" in sources.moved(RESPONSE + dedent(source))


def test_a_second_run_lists_what_the_first_left_and_nothing_else(sources: Sources) -> None:
    source = """
        @router.post("/both")
        async def both(background: BackgroundTasks):
            background.add_task(send, "injected")
            return JSONResponse({}, background=BackgroundTask(send, "of the response"))

        @router.post("/one")
        async def one(background: BackgroundTasks):
            background.add_task(send, "moved")

        def visit(background: BackgroundTasks):
            background.add_task(send, "left")
        """
    path = sources.add("module.py", "from tasks_fastapi import Tasks\n" + RESPONSE + dedent(source))
    _, first = sources.run("--write")
    assert "4 calls: 1 moved, 3 left" in first
    text = path.read_text()
    _, second = sources.run("--write")
    assert path.read_text() == text
    assert "3 calls: 0 moved, 3 left" in second
    assert first.partition("\nLeft:")[2].partition("\n\n")[0] == second.partition("\nLeft:")[2].partition("\n\n")[0]


def test_calls_of_tasks_in_a_file_that_still_uses_background_tasks_are_not_listed(sources: Sources) -> None:
    source = """
        from tasks_fastapi import Tasks

        def visit(background: BackgroundTasks): ...

        @router.post("/")
        async def create(tasks: Tasks):
            def later():
                tasks.add_task(send, "a")

            tasks.add_task(later)
        """
    assert "0 calls: 0 moved, 0 left" in sources.left(BACKGROUND + dedent(source))


NEEDED = {
    "by a parameter": ("", "", "_=Depends(audit)"),
    "through another dependency": ("", "", "_=Depends(checked)"),
    "by the route": ("", ", dependencies=[Depends(audit), Depends()]", ""),
    "by the router": (
        "users = APIRouter(prefix='/users', dependencies=[Depends(audit), Depends(), Depends(int)])",
        "",
        "",
    ),
    "where the router is included": (
        "router.include_router(APIRouter(), dependencies=[Depends(dependency=audit)])",
        "",
        "",
    ),
}


@pytest.mark.parametrize("case", NEEDED)
def test_a_dependency_of_an_endpoint_whose_response_has_a_background_is_left_with_it(
    case: str, sources: Sources
) -> None:
    before, route, parameter = NEEDED[case]
    source = f"""
        def audit(background: BackgroundTasks):
            background.add_task(send, "audit")

        def checked(_=Depends(audit)): ...

        {before}

        @router.get("/plain")
        def plain(_=Depends(audit)): ...

        @router.get("/"{route})
        def home({parameter}):
            return JSONResponse({{}}, background=BackgroundTask(send, "a"))
        """
    output = sources.left(RESPONSE + dedent(source), "--assume", "order", "--assume", "values")
    assert "add_task: the response of home may have a background of its own, which replaces" in output
    assert "BackgroundTask: a dependency adds tasks, which this response replaces" in output


def test_a_dependency_of_endpoints_without_a_background_is_moved(sources: Sources) -> None:
    source = """
        def audit(background: BackgroundTasks):
            background.add_task(send, "audit")

        @router.get("/plain")
        def plain(_=Depends(audit)): ...

        @router.get("/")
        def home():
            return JSONResponse({}, background=BackgroundTask(send, "a"))
        """
    text = sources.moved(RESPONSE + dedent(source), "--assume", "order")
    assert 'def audit(tasks: Tasks):\n    tasks.add_task(send, "audit")' in text
    assert 'def home(tasks: Tasks):\n    tasks.add_task(send, "a")' in text


@pytest.mark.parametrize("started", ["schedule(), audit.schedule('a')", "schedule(home, None)", "add_task(home, None)"])
def test_an_endpoint_that_a_task_calls_is_left(started: str, sources: Sources) -> None:
    source = f"""
        from tasks_fastapi import current_tasks

        @router.get("/")
        async def home(background: BackgroundTasks):
            background.add_task(send, "a")

        def service():
            current_tasks().{started}
        """
    if "home" in started:
        assert "home is called directly, at " in sources.left(BACKGROUND + dedent(source))
    else:
        assert 'tasks.add_task(send, "a")' in sources.moved(BACKGROUND + dedent(source))


def test_an_endpoint_that_a_moved_task_calls_is_left_by_the_second_run_too(sources: Sources) -> None:
    source = """
        import asyncio

        @router.get("/")
        async def home(background: BackgroundTasks):
            background.add_task(send, "a")

        async def service():
            asyncio.create_task(home(BackgroundTasks()))
        """
    text = sources.moved(BACKGROUND + dedent(source))
    assert "current_tasks().schedule(home, BackgroundTasks())" in text
    assert 'background.add_task(send, "a")' in text


def test_a_dependency_of_an_endpoint_without_a_decorator_is_left(sources: Sources) -> None:
    source = """
        def audit(background: BackgroundTasks):
            background.add_task(send, "audit")

        def home(_=Depends(audit)):
            return JSONResponse({}, background=BackgroundTask(send, "a"))

        router.add_api_route("/", home)
        """
    assert "add_task: the response of home may have a" in sources.left(RESPONSE + dedent(source), "--assume", "order")


def test_add_task_of_another_library_is_not_listed(sources: Sources) -> None:
    assert "0 calls: 0 moved, 0 left" in sources.left(in_app("def service(queue):\n    queue.add_task(track)\n"))

"""`python -m tasks_fastapi.move`: imports and layout before and after, and the layouts that it leaves."""

import pytest
from move_sources import RESPONSE, Sources, dedent, in_app, sources

__all__ = ("sources",)

IMPORTS = {
    "behind the docstring": (
        """
        "One " "text."
        from asyncio import create_task
        """,
        """
        "One " "text."
        from tasks_fastapi import current_tasks
        """,
    ),
    "before a relative import": (
        """
        from asyncio import create_task
        import json

        from .events import EVENTS
        """,
        """
        import json
        from tasks_fastapi import current_tasks

        from .events import EVENTS
        """,
    ),
    "before everything": (
        """
        EVENTS = []
        from asyncio import create_task
        """,
        """
        from tasks_fastapi import current_tasks

        EVENTS = []
        """,
    ),
    "beside a star": (
        """
        from asyncio import create_task
        from tasks_fastapi import *
        """,
        """
        from tasks_fastapi import *
        from tasks_fastapi import current_tasks
        """,
    ),
    "with the others of the package": (
        """
        from asyncio import create_task
        from tasks_fastapi import (
            add_tasks,
            get_scheduler,  # of the application
        )
        """,
        """
        from tasks_fastapi import (
            add_tasks,
            get_scheduler,
            current_tasks,  # of the application
        )
        """,
    ),
    "under another name": (
        """
        from asyncio import create_task
        from tasks_fastapi import current_tasks as here
        """,
        """
        from tasks_fastapi import current_tasks as here, current_tasks
        """,
    ),
    "the last of several": (
        """
        from asyncio import sleep
        from asyncio import gather, create_task
        """,
        """
        from asyncio import sleep
        from asyncio import gather
        from tasks_fastapi import current_tasks
        """,
    ),
    "one with a comment among several": (
        """
        from asyncio import (
            create_task,  # in the background
            sleep,
        )
        """,
        """
        from asyncio import (
            create_task,  # in the background
            sleep,
        )
        from tasks_fastapi import current_tasks
        """,
    ),
    "one with a comment": (
        """
        from asyncio import create_task  # in the background
        """,
        """
        from asyncio import create_task  # in the background
        from tasks_fastapi import current_tasks
        """,
    ),
    "one before a comment": (
        """
        import json
        from asyncio import create_task
        # What happens.
        from events import EVENTS
        """,
        """
        import json
        # What happens.
        from events import EVENTS
        from tasks_fastapi import current_tasks
        """,
    ),
    "one inside of a statement": (
        """
        import json
        if True:
            from asyncio import create_task
        """,
        """
        import json
        from tasks_fastapi import current_tasks
        if True:
            from asyncio import create_task
        """,
    ),
    "one on a line with another": (
        """
        import json; from asyncio import create_task
        """,
        """
        from tasks_fastapi import current_tasks

        import json; from asyncio import create_task
        """,
    ),
}


@pytest.mark.parametrize("case", IMPORTS)
def test_imports_are_added_and_removed(case: str, sources: Sources) -> None:
    before, after = map(dedent, IMPORTS[case])
    function = "\n\nasync def track(): ...\n\n\nasync def service():\n    {}\n"
    text = sources.moved(before + function.format("create_task(track())"))
    assert text == after + function.format("current_tasks().schedule(track)")


PARAMETERS = {
    "(name)": "(name, tasks: Tasks)",
    "(name, *, limit)": "(name, tasks: Tasks, *, limit)",
    "(name, **more)": "(name, tasks: Tasks, **more)",
    "(*, limit)": "(tasks: Tasks, *, limit)",
    "(name, limit=1, size=2)": "(name, tasks: Tasks, limit=1, size=2)",
    "(\n    name,\n    limit=1,\n)": "(\n    name,\n    tasks: Tasks,\n    limit=1,\n)",
    "(\n    name,\n    limit=1,  # at most\n    size=2,\n)": (
        "(\n    name,\n    tasks: Tasks,\n    limit=1,  # at most\n    size=2,\n)"
    ),
    "(\n    name,\n    age,  # in years\n)": "(\n    name,\n    age,  # in years\n    tasks: Tasks,\n)",
    # The parameters stay where it is not certain how they are laid out.
    "(\n    name,\n)": "the only parameter stands on a line of its own",
    "(\n    name,\n    age  # in years\n)": "a comment stands behind the last parameter",
    "(name, age,  # in years\n)": "a comment stands behind the last parameter",
}


@pytest.mark.parametrize("before", PARAMETERS)
def test_the_parameter_tasks_is_laid_out_like_the_others(before: str, sources: Sources) -> None:
    after = PARAMETERS[before]
    source = in_app(f'@app.get("/")\nasync def home{before}:\n    asyncio.create_task(track("a"))\n')
    if after.startswith("("):
        assert f'async def home{after}:\n    tasks.schedule(track, "a")\n' in sources.moved(source)
    else:
        assert f"nothing in this file is changed: {after}" in sources.left(source)


CALLS = {
    "a coroutine function without arguments": (
        """
        asyncio.create_task(
            track(),
        )
        """,
        """
        current_tasks().schedule(
            track,
        )
        """,
    ),
    "arguments on lines of their own in a call on one line": (
        """
        asyncio.create_task(track(
        ))
        """,
        """
        current_tasks().schedule(track)
        """,
    ),
    "a comment behind the name": (
        """
        asyncio.create_task(
            track(),
            name="a",  # for the log
        )
        """,
        "a comment stands behind the name of the task",
    ),
    "a comment in a call without arguments": (
        """
        asyncio.create_task(track(
            # nothing
        ))
        """,
        "a comment stands in the call of the coroutine function",
    ),
}


@pytest.mark.parametrize("case", CALLS)
def test_a_call_is_laid_out_as_before(case: str, sources: Sources) -> None:
    before, after = map(dedent, CALLS[case])
    function = "async def service():\n    "
    source = in_app(function + before.rstrip("\n").replace("\n", "\n    ") + "\n")
    if "schedule" in after:
        assert function + after.rstrip("\n").replace("\n", "\n    ") + "\n" in sources.moved(source)
    else:
        assert f"nothing in this file is changed: {after}" in sources.left(source)


RESPONSES = {
    "the only argument": (
        """
        return JSONResponse(background=BackgroundTask(send, "a"))
        """,
        """
        tasks.add_task(send, "a")
        return JSONResponse()
        """,
    ),
    "the first argument, beside another return": (
        """
        if router:
            return session()
        return JSONResponse(background=BackgroundTask(send, "a"), content={})
        """,
        """
        if router:
            return session()
        tasks.add_task(send, "a")
        return JSONResponse(content={})
        """,
    ),
    "a comment behind it": (
        """
        return JSONResponse(
            {},
            background=BackgroundTask(send, "a"),  # in the background
        )
        """,
        "a comment stands behind the BackgroundTask",
    ),
    "a comment before it": (
        """
        return JSONResponse(
            # in the background
            background=BackgroundTask(send, "a")
        )
        """,
        "a comment stands before the BackgroundTask",
    ),
}


@pytest.mark.parametrize("case", RESPONSES)
def test_a_response_without_its_background_is_laid_out_as_before(case: str, sources: Sources) -> None:
    before, after = map(dedent, RESPONSES[case])
    source = f'{RESPONSE}@router.get("/")\ndef home():\n    ' + before.rstrip("\n").replace("\n", "\n    ") + "\n"
    if "add_task" in after:
        expected = "def home(tasks: Tasks):\n    " + after.rstrip("\n").replace("\n", "\n    ") + "\n"
        assert expected in sources.moved(source)
    else:
        assert f"nothing in this file is changed: {after}" in sources.left(source)


def test_a_file_that_python_does_not_compile_is_left(sources: Sources) -> None:
    """Python parses a `return` outside of a function, and refuses to compile it."""
    output = sources.left(in_app("async def service():\n    asyncio.create_task(track('a'))\n\nreturn\n"))
    assert "nothing in this file is changed: the result would not compile: 'return' outside function" in output

"""
`python -m tasks_fastapi.move PATH`: a project's `asyncio.create_task` and `BackgroundTasks` calls become tasks.

Start reading at `_decide.py` (which calls are moved, and why a call is left). `_project.py` reads the files and finds
what a name refers to; `_rewrite.py` and `_imports.py` change the source; `__main__.py` is the command. The decisions
are made on the `ast` of the standard library; only files that change are parsed by libcst, which keeps their layout and
comments.

```text
_project ── _decide ─┬─ _rewrite ── __main__
            _imports ─┘
```
"""

"""Answers of a language model that do not depend on the connection of the reader."""

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
from fastapi import FastAPI
from fastapi.responses import FileResponse
from tasks_core import emit, report
from tasks_fastapi import Tasks, add_tasks
from tasks_fastapi.jobs import Job, MakeJob, jobs_router

# --8<-- [start:app]
app = FastAPI()
add_tasks(app, grace_period=1, shield_timeout=10, follow_for=600)
app.include_router(jobs_router(ids_are_enough=True), prefix="/jobs")


async def answer(question: str) -> str:
    words: list[str] = []
    async for word in language_model(question):
        words.append(word)
        emit({"word": word})
        report({"words": len(words)})
    return " ".join(words)


@app.post("/answers", status_code=202)
async def ask(question: str, tasks: Tasks, job: MakeJob) -> Job[str]:
    return job(tasks.task(shield=True).schedule(answer, question))


# --8<-- [end:app]


async def language_model(question: str) -> AsyncIterator[str]:
    """Say something, a word at a time, as a model does."""
    for word in [*f"You ask: {question} My answer has".split(), *map(str, range(1, 31)), "words."]:
        await anyio.sleep(0.05)
        yield word


@app.get("/")
async def page() -> FileResponse:
    return FileResponse(Path(__file__).with_name("page.html"))

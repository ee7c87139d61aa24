"""A gunicorn worker that gives requests a second to end. The master knows only how to kill a worker."""

from typing import Any, ClassVar

from uvicorn_worker import UvicornWorker  # type: ignore[import-untyped]  # it has no py.typed


class PatientWorker(UvicornWorker):  # type: ignore[misc]  # for the same reason
    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {**UvicornWorker.CONFIG_KWARGS, "timeout_graceful_shutdown": 1}

"""
Durable tasks on PostgreSQL, by procrastinate: `pip install tasks-core[procrastinate]`.

```python
engine = ProcrastinateEngine("postgresql://app@db/app")
engine = ProcrastinateEngine.embedded("./tasks-db")  # on a laptop, with tasks-core[embedded]
```

Start reading at `_engine.py` (what the scheduler and the worker call). Imports go one way:

```text
_embedded  _queries  _schema  _thread  _transaction
_reports ── _work ── _bridge ── _engine
```
"""

from ._engine import ProcrastinateEngine

__all__ = ("ProcrastinateEngine",)

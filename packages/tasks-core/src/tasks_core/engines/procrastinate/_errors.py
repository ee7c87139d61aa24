"""What an error of PostgreSQL means: an outage, which passes, or something that has to be mended."""

from __future__ import annotations

import psycopg
from psycopg_pool import PoolTimeout

from tasks_core.engines import EngineError, EngineSchemaError, EngineUnavailableError

# Connections (08), resources (53: memory, disk, connections), a server that is shut down or starts (57P0x), one that
# only reads because it has become a standby (25006), and transactions that PostgreSQL asks to repeat (40).
_OUTAGES = ("08", "53", "57P0", "25006", "40")
# Undefined objects and missing privileges (42), a schema that does not exist (3F).
_SCHEMA = ("42", "3F")


def is_outage(error: BaseException) -> bool:
    """Return whether the same statement may succeed later."""
    match error:
        case psycopg.Error(sqlstate=str() as state):
            return state.startswith(_OUTAGES)
        case psycopg.OperationalError() | psycopg.InterfaceError() | PoolTimeout() | OSError():
            return True
        case _:
            return False


def engine_error(error: Exception) -> EngineError:
    """Make the error that `submit()` and `status()` raise. Its text has no data of the call, as that of *error* may."""
    name = type(error).__name__
    if is_outage(error):
        return EngineUnavailableError(f"PostgreSQL did not acknowledge: {name}")
    if isinstance(error, psycopg.Error) and error.sqlstate is not None and error.sqlstate.startswith(_SCHEMA):
        return EngineSchemaError(f"PostgreSQL refused the statement: {name}: {error.diag.message_primary}")
    return EngineError(f"PostgreSQL refused the statement: {name}")


def opening_error(error: Exception) -> EngineError:
    """Make the error of an engine that cannot be entered."""
    if isinstance(error, psycopg.Error) and error.sqlstate is not None and error.sqlstate.startswith(_SCHEMA):
        return EngineSchemaError(
            f"The role may not use or create the tables: {error.diag.message_primary}. Have a role that may create "
            "them enter the engine once, or grant USAGE and CREATE on the schema"
        )
    return EngineUnavailableError(f"PostgreSQL cannot be reached: {error}")

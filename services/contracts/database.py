"""When PostgreSQL is away: the errors after which the same work, done again later, succeeds."""

from __future__ import annotations

import asyncpg

DATABASE_AWAY: tuple[type[BaseException], ...] = (
    OSError,  # refused, no socket, timed out
    asyncpg.PostgresConnectionError,  # class 08
    asyncpg.InsufficientResourcesError,  # class 53: disk full, too many connections
    asyncpg.OperatorInterventionError,  # class 57: shut down, starting up, cancelled
    asyncpg.PostgresSystemError,  # class 58: I/O error
    asyncpg.ReadOnlySQLTransactionError,  # a standby, before clients have moved on
    asyncpg.InterfaceError,  # the client's: the connection or the pool is closed
    TimeoutError,
)
"""What asyncpg raises while the database cannot be used, by SQLSTATE class."""

"""How both services use PostgreSQL: what their pools are set to, and the errors of one that is away."""

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
    asyncpg.InternalClientError,  # the connection was lost in the middle of an answer
    TimeoutError,
)
"""What asyncpg raises while the database cannot be used, by SQLSTATE class."""


STEADY_PLANS = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}
"""Server settings of a pool whose statements find rows by key, from arrays: one plan, by index.

Left alone, PostgreSQL plans a statement anew for each short array, which costs more than running it; and
a plan made while the tables were small would read them whole at every batch until they are analysed.
"""


async def nothing_to_reset(_: object) -> None:
    """Stand in for a pool's reset query, a round trip: our code leaves no session state behind."""

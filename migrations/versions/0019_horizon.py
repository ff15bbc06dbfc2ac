"""stage: events beyond the horizon, which are kept and not folded.

A constant default: no row is rewritten. Safe while an older version runs: it writes no flag, as nothing is
beyond a horizon that it does not know.

Revision ID: 0019
"""

from alembic import op

revision = "0019"
down_revision = "0017"


def upgrade() -> None:
    op.execute(
        "ALTER TABLE stage.events ADD COLUMN IF NOT EXISTS "
        "beyond_horizon boolean NOT NULL DEFAULT false"
    )
    op.execute(
        "COMMENT ON COLUMN stage.events.beyond_horizon IS "
        "'it came too late to rewrite history: kept, and not folded'"
    )

"""stage: events beyond the horizon, which are kept and not folded; handoffs that a correction took back.

Constant defaults: no row is rewritten. Safe while an older version runs: it writes neither flag, as nothing
is beyond a horizon that it does not know, and it counts a handoff that was taken back as it always did.

Revision ID: 0019
"""

from alembic import op

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    op.execute(
        "ALTER TABLE stage.events ADD COLUMN IF NOT EXISTS "
        "beyond_horizon boolean NOT NULL DEFAULT false"
    )
    op.execute(
        "COMMENT ON COLUMN stage.events.beyond_horizon IS "
        "'it came too late to rewrite history: kept, and not folded'"
    )
    op.execute(
        "ALTER TABLE stage.handoffs ADD COLUMN IF NOT EXISTS holds boolean NOT NULL DEFAULT true"
    )
    op.execute(
        "COMMENT ON COLUMN stage.handoffs.holds IS "
        "'false: the history, corrected, does not know it; it is not counted'"
    )

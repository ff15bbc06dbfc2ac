"""stage: room in the pages of leads for the next versions of their rows.

A lead's row is written anew with each of its events. Where its page has room for that, no index is touched
and the old version's place is used again. Safe while an older version runs: it notices nothing.

Revision ID: 0017
"""

from alembic import op

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    op.execute("ALTER TABLE stage.leads SET (fillfactor = 50)")

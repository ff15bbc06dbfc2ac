"""stage: what was scheduled says on which version it ended, so that a refusal is told until another comes.

What ended before this has none, and is told no more; so it is with what the version before still ends.

Revision ID: 0023
"""

from alembic import op

revision = "0023"
down_revision = "0022"


def upgrade() -> None:
    op.execute("ALTER TABLE stage.scheduled_publications ADD COLUMN active_version int")
    op.execute(
        "COMMENT ON COLUMN stage.scheduled_publications.active_version IS "
        "'the version of the playbook that was active when it ended; 0: none was'"
    )

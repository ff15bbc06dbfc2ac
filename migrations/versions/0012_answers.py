"""Schema notifier: handoffs as alerts know them, whose answer settles the alerts about them.

Revision ID: 0012
"""

from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    # Nullable: the version before goes on writing rows without them.
    op.execute("""
        ALTER TABLE notifier.alerts
          ADD COLUMN handoff_id uuid,
          ADD COLUMN can_answer boolean NOT NULL DEFAULT false,
          ADD COLUMN acknowledged_why text,
          DROP CONSTRAINT alerts_kind_check,
          ADD CONSTRAINT alerts_kind_check CHECK (kind IN
            ('transition', 'escalation', 'handoff', 'clock')) NOT VALID
    """)
    op.execute(
        "COMMENT ON COLUMN notifier.alerts.handoff_id IS 'the handoff whose answer settles it'"
    )
    op.execute(
        "COMMENT ON COLUMN notifier.alerts.can_answer IS 'whether whom it is for can answer the handoff'"
    )
    op.execute(
        "COMMENT ON COLUMN notifier.alerts.acknowledged_why IS "
        "'how its handoff was answered, when that acknowledged it'"
    )
    op.execute(
        "COMMENT ON COLUMN notifier.alerts.transition_id IS "
        "'what it tells of: a transition, a change of owner, or the id of the message itself'"
    )
    op.execute(
        "CREATE INDEX alerts_of_handoff ON notifier.alerts (handoff_id, id) "
        "WHERE handoff_id IS NOT NULL"
    )
    # The row of a handoff makes an alert about it and its answer take turns, whichever comes first.
    op.execute("""
        CREATE TABLE notifier.handoffs (
          id uuid PRIMARY KEY,
          due_at timestamptz,
          reasons text[] NOT NULL DEFAULT '{}',
          state text CHECK (state IN ('offered', 'accepted', 'rejected', 'withdrawn')),
          answered_by text,
          implied boolean NOT NULL DEFAULT false,
          why text,
          told_at timestamptz)
    """)
    op.execute(
        "COMMENT ON COLUMN notifier.handoffs.state IS "
        "'as the message recorded last (told_at) says; NULL: none said yet'"
    )
    # What is deleted after a time is found by it.
    op.execute("CREATE INDEX used_links_in_time ON notifier.used_links (used_at)")
    op.execute("CREATE INDEX digests_in_time ON notifier.digests (created_at)")

"""Schema stage: which leads changed, for the snapshots on the topic baton.leads.

Revision ID: 0015
"""

from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    # One narrow row a batch, gone once its leads are published: read in id order, deleted by id, so that
    # commits out of order lose nothing.
    op.execute("""
        CREATE TABLE stage.lead_changes (
          id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
          lead_ids uuid[] NOT NULL)
        WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000)
    """)
    op.execute("""
        CREATE TABLE stage.snapshot_feed (
          is_one boolean PRIMARY KEY DEFAULT true CHECK (is_one),
          begun_at timestamptz NOT NULL DEFAULT now(),
          filled_to uuid,
          filled_at timestamptz)
    """)
    op.execute(
        "COMMENT ON TABLE stage.snapshot_feed IS 'one row while somebody publishes snapshots: batches note "
        "what they change only then'"
    )
    op.execute(
        "COMMENT ON COLUMN stage.snapshot_feed.filled_to IS 'the leads up to this id were published once; "
        "filled_at: all were'"
    )

"""stage: simulations that were asked for over HTTP, so that any replica finds them.

Safe while an older version runs: it notices nothing.

Revision ID: 0021
"""

from alembic import op

revision = "0021"
down_revision = "0020"


def upgrade() -> None:
    op.execute("""
        CREATE TABLE stage.simulations (
          id uuid PRIMARY KEY,
          playbook text NOT NULL,
          digest text NOT NULL,
          source text NOT NULL,
          since timestamptz,
          workers integer NOT NULL,
          asked_by text NOT NULL,
          state text NOT NULL CHECK (state IN ('running', 'done', 'failed', 'cancelled')),
          reason text,
          leads_done integer NOT NULL DEFAULT 0,
          leads_total integer,
          started_at timestamptz NOT NULL,
          beat_at timestamptz NOT NULL,
          ended_at timestamptz,
          result bytea,
          CHECK ((state = 'done') = (result IS NOT NULL)),
          CHECK ((state = 'running') = (ended_at IS NULL)))
    """)
    op.execute("CREATE INDEX simulations_newest ON stage.simulations (started_at DESC, id DESC)")
    # One at a time: all replicas share the database that it reads.
    op.execute(
        "CREATE UNIQUE INDEX one_simulation ON stage.simulations (state) WHERE state = 'running'"
    )
    op.execute(
        "COMMENT ON COLUMN stage.simulations.beat_at IS 'when the process that runs it was last heard of'"
    )
    op.execute("COMMENT ON COLUMN stage.simulations.result IS 'the document (JSON) as it was made'")

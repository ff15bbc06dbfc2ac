"""access and bus: what both services share.

Revision ID: 0001
"""

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.execute("CREATE SCHEMA access")
    op.execute("""
        CREATE TABLE access.keys (
          id text PRIMARY KEY,
          name text NOT NULL,
          kind text NOT NULL CHECK (kind IN ('key', 'session', 'login')),
          hash bytea NOT NULL CHECK (length(hash) = 32),
          scopes text[] NOT NULL CHECK (cardinality(scopes) > 0),
          created_at timestamptz NOT NULL DEFAULT now(),
          expires_at timestamptz,
          revoked_at timestamptz)
    """)
    op.execute("CREATE SCHEMA bus")
    op.execute("""
        CREATE TABLE bus.outbox (
          id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
          message_id text NOT NULL,
          topic text NOT NULL,
          key text NOT NULL,
          headers jsonb NOT NULL,
          value bytea NOT NULL,
          recorded_at timestamptz NOT NULL DEFAULT now())
    """)
    op.execute("""
        CREATE TYPE bus.message_row AS (
          message_id text, topic text, key text, headers jsonb, value bytea)
    """)
    # A queue apart from the wide, immutable outbox: a message is written once, and only this narrow
    # table churns.
    op.execute("""
        CREATE TABLE bus.pending (outbox_id bigint PRIMARY KEY)
        WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000)
    """)
    op.execute("""
        CREATE TABLE bus.log (
          position bigint PRIMARY KEY CHECK (position > 0),
          outbox_id bigint NOT NULL UNIQUE,
          topic text NOT NULL,
          published_at timestamptz NOT NULL DEFAULT now())
    """)
    op.execute("""
        CREATE TABLE bus.cursors (
          name text PRIMARY KEY,
          position bigint NOT NULL,
          moved_at timestamptz NOT NULL DEFAULT now())
    """)

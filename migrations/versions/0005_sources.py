"""stage: what sources need: deliveries that could not be mapped, and secrets.

Revision ID: 0005
"""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.execute("""
        CREATE TABLE stage.quarantine (
          id uuid PRIMARY KEY,
          source text NOT NULL,
          received_at timestamptz NOT NULL,
          last_received_at timestamptz NOT NULL,
          times integer NOT NULL DEFAULT 1 CHECK (times > 0),
          body bytea NOT NULL,
          body_hash bytea NOT NULL,
          content_type text NOT NULL,
          headers jsonb NOT NULL,
          query jsonb NOT NULL,
          reasons jsonb NOT NULL,
          status text NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'replayed', 'discarded')),
          closed_at timestamptz,
          closed_by text,
          CHECK ((status = 'open') = (closed_at IS NULL)))
    """)
    op.execute(
        "COMMENT ON TABLE stage.quarantine IS "
        "'authentic deliveries that could not be mapped, whole, until replayed or discarded'"
    )
    # The vendor that tries again sends the same body: one row, counted.
    op.execute(
        "CREATE UNIQUE INDEX quarantine_open ON stage.quarantine (source, body_hash) "
        "WHERE status = 'open'"
    )
    op.execute("""
        CREATE TABLE stage.source_secrets (
          id uuid PRIMARY KEY,
          source text NOT NULL,
          ciphertext bytea NOT NULL,
          created_at timestamptz NOT NULL DEFAULT now())
    """)
    op.execute(
        "COMMENT ON COLUMN stage.source_secrets.ciphertext IS "
        "'AES-256-GCM: key id (4 bytes), nonce (12), sealed secret; bound to source and id'"
    )
    op.execute("CREATE INDEX source_secrets_source ON stage.source_secrets (source)")

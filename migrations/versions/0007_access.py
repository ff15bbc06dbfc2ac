"""access: keys bound to sources, with limits of their own; answers kept for repeats.

Revision ID: 0007
"""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    # Nullable: the version before reads and writes keys without them.
    op.execute("""
        ALTER TABLE access.keys
          ADD COLUMN sources text[] CHECK (
            sources IS NULL OR (cardinality(sources) > 0 AND scopes = '{ingest}')),
          ADD COLUMN rate text,
          ADD COLUMN event_rate text
    """)
    op.execute("""
        CREATE TABLE access.idempotency_keys (
          who text NOT NULL,
          key text NOT NULL,
          fingerprint bytea NOT NULL CHECK (length(fingerprint) = 32),
          effect_id uuid NOT NULL,
          done boolean NOT NULL DEFAULT false,
          status int,
          content_type text,
          body bytea,
          claimed_until timestamptz,
          created_at timestamptz NOT NULL,
          PRIMARY KEY (who, key),
          CHECK ((status IS NULL) = (body IS NULL)))
    """)
    op.execute(
        "COMMENT ON COLUMN access.idempotency_keys.effect_id IS "
        "'kept over attempts: what a request makes carries it, so that it is made once'"
    )
    op.execute(
        "COMMENT ON COLUMN access.idempotency_keys.done IS "
        "'set in the transaction of an effect that cannot carry effect_id'"
    )
    op.execute("CREATE INDEX idempotency_keys_oldest ON access.idempotency_keys (created_at)")

"""Schema stage: subscriptions of other systems, their secrets, their places in the log, their deliveries.

Revision ID: 0014
"""

from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    op.execute("""
        CREATE TABLE stage.subscriptions (
          id uuid PRIMARY KEY,
          name text NOT NULL,
          connector text,
          url text,
          types text[] NOT NULL,
          filter text,
          payload text NOT NULL CHECK (payload IN ('full', 'thin')),
          ordered boolean NOT NULL,
          headers bytea,
          credentials bytea,
          config jsonb NOT NULL DEFAULT '{}',
          contact text,
          timeout_s real NOT NULL,
          concurrency integer NOT NULL CHECK (concurrency > 0),
          rate_per_s real CHECK (rate_per_s > 0),
          state text NOT NULL CHECK (state IN ('active', 'paused', 'failing', 'gone')),
          state_reason text,
          state_at timestamptz NOT NULL,
          failing_since timestamptz,
          version integer NOT NULL DEFAULT 1,
          created_at timestamptz NOT NULL,
          created_by text NOT NULL,
          updated_at timestamptz NOT NULL,
          deleted_at timestamptz,
          CHECK ((url IS NULL) <> (connector IS NULL)))
    """)
    op.execute(
        "COMMENT ON COLUMN stage.subscriptions.state IS 'active; paused: by hand; failing: paused by Baton "
        "after days of failures; gone: the endpoint answered 410. Only active ones are delivered to'"
    )
    op.execute(
        "COMMENT ON COLUMN stage.subscriptions.version IS 'grows with every change by hand: the ETag, and "
        "what tells the dispatcher to read it again'"
    )
    op.execute("""
        CREATE TABLE stage.subscription_secrets (
          id uuid PRIMARY KEY,
          subscription_id uuid NOT NULL,
          kind text NOT NULL CHECK (kind IN ('v1', 'v1a')),
          ciphertext bytea NOT NULL,
          public_key text,
          created_at timestamptz NOT NULL,
          expires_at timestamptz)
    """)
    op.execute(
        "COMMENT ON COLUMN stage.subscription_secrets.expires_at IS "
        "'an old secret signs beside the new one until then; null: it is the present one'"
    )
    op.execute(
        "CREATE INDEX subscription_secrets_of ON stage.subscription_secrets (subscription_id)"
    )
    # Apart from the subscription: it moves with every batch of deliveries.
    op.execute("""
        CREATE TABLE stage.subscription_cursors (
          subscription_id uuid PRIMARY KEY,
          position bigint NOT NULL,
          run integer NOT NULL DEFAULT 0,
          moved_at timestamptz NOT NULL DEFAULT now())
    """)
    op.execute(
        "COMMENT ON COLUMN stage.subscription_cursors.position IS 'every message of the log up to here was "
        "delivered, does not match, or has a row in stage.deliveries'"
    )
    op.execute(
        "COMMENT ON COLUMN stage.subscription_cursors.run IS "
        "'how often it was set back to replay: rows of an earlier run do not stand for a later one'"
    )
    op.execute("""
        CREATE TABLE stage.deliveries (
          id uuid PRIMARY KEY,
          subscription_id uuid NOT NULL,
          run integer NOT NULL,
          position bigint,
          event_id text NOT NULL,
          event_type text NOT NULL,
          lead_id text NOT NULL,
          body jsonb,
          state text NOT NULL
            CHECK (state IN ('waiting', 'due', 'delivered', 'failed', 'skipped')),
          attempts jsonb NOT NULL DEFAULT '[]',
          tries integer NOT NULL DEFAULT 0,
          next_at timestamptz,
          created_at timestamptz NOT NULL,
          done_at timestamptz,
          CHECK ((position IS NULL) = (body IS NOT NULL)))
    """)
    op.execute(
        "COMMENT ON COLUMN stage.deliveries.state IS 'waiting: behind an earlier one of its lead; due: at "
        "next_at; delivered; failed: given up, as attempts say why; skipped: by hand, or by a replay'"
    )
    op.execute("COMMENT ON COLUMN stage.deliveries.body IS 'of a test event, which is in no log'")
    op.execute(
        "CREATE UNIQUE INDEX deliveries_once ON stage.deliveries (subscription_id, run, position) "
        "WHERE position IS NOT NULL"
    )
    op.execute(
        "CREATE INDEX deliveries_due ON stage.deliveries (subscription_id, next_at) WHERE state = 'due'"
    )
    op.execute(
        "CREATE INDEX deliveries_open ON stage.deliveries (subscription_id, lead_id, position) "
        "WHERE state IN ('waiting', 'due')"
    )
    op.execute("CREATE INDEX deliveries_newest ON stage.deliveries (subscription_id, id)")
    op.execute("CREATE INDEX deliveries_of_lead ON stage.deliveries (lead_id, id)")
    op.execute("CREATE INDEX deliveries_done ON stage.deliveries (done_at)")

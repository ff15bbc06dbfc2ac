"""notifier: alerts, their deliveries, and messages that could not be read.

Revision ID: 0003
"""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.execute("CREATE SCHEMA notifier")
    op.execute("""
        CREATE TABLE notifier.alerts (
          id uuid PRIMARY KEY,
          transition_id uuid NOT NULL,
          recipient text NOT NULL,
          lead_id uuid NOT NULL,
          role text NOT NULL,
          person_id text,
          person_name text,
          addressee_id text,
          status text NOT NULL
            CHECK (status IN ('pending', 'delivered', 'acknowledged', 'dead_lettered')),
          subject text NOT NULL,
          body text NOT NULL,
          stage text NOT NULL,
          company text,
          created_at timestamptz NOT NULL,
          acknowledged_at timestamptz,
          acknowledged_by text,
          UNIQUE (transition_id, recipient),
          CHECK ((person_id IS NULL) = (person_name IS NULL)),
          CHECK ((status = 'acknowledged') = (acknowledged_at IS NOT NULL)))
        WITH (fillfactor = 80)
    """)
    op.execute(
        "COMMENT ON COLUMN notifier.alerts.recipient IS "
        "'the person''s id, or role:<role> when nobody was eligible: one alert a transition'"
    )
    op.execute(
        "COMMENT ON COLUMN notifier.alerts.addressee_id IS "
        "'whose channels carry it: the person, or sales leadership when there is none'"
    )
    # Ids are UUIDv7: newest first is the id's order, within each of what lists are filtered by.
    op.execute("CREATE INDEX alerts_of_addressee ON notifier.alerts (addressee_id, id)")
    op.execute("CREATE INDEX alerts_of_role ON notifier.alerts (role, id)")
    op.execute("CREATE INDEX alerts_of_lead ON notifier.alerts (lead_id, id)")
    op.execute(
        "CREATE INDEX alerts_unsettled ON notifier.alerts (status, id) "
        "WHERE status IN ('pending', 'dead_lettered')"
    )
    # One row per attempt and channel; no foreign key, since alert and deliveries are inserted by one
    # statement and a check per row would cost more than the row.
    op.execute("""
        CREATE TABLE notifier.deliveries (
          id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
          alert_id uuid NOT NULL,
          channel text NOT NULL,
          attempt int NOT NULL CHECK (attempt > 0),
          last_attempt int NOT NULL CHECK (last_attempt >= attempt),
          status text NOT NULL
            CHECK (status IN ('pending', 'claimed', 'delivered', 'failed', 'skipped', 'dead')),
          due_at timestamptz NOT NULL,
          claimed_until timestamptz,
          finished_at timestamptz,
          reason text,
          latency_ms int,
          UNIQUE (alert_id, channel, attempt),
          CHECK ((status = 'claimed') = (claimed_until IS NOT NULL)),
          CHECK ((status IN ('pending', 'claimed')) = (finished_at IS NULL)))
        WITH (fillfactor = 80)
    """)
    op.execute(
        "COMMENT ON COLUMN notifier.deliveries.channel IS "
        "'a label: inbox, console, email, or scheme:hash; never the URL, which holds secrets'"
    )
    op.execute(
        "COMMENT ON COLUMN notifier.deliveries.last_attempt IS "
        "'the attempt after whose failure the channel is dead; a retry by hand raises it'"
    )
    # A claim whose lease ended is due again: one index finds both.
    op.execute(
        "CREATE INDEX deliveries_due ON notifier.deliveries (coalesce(claimed_until, due_at)) "
        "WHERE status IN ('pending', 'claimed')"
    )
    op.execute(
        "CREATE INDEX deliveries_undelivered ON notifier.deliveries (finished_at, id) "
        "WHERE status IN ('dead', 'skipped')"
    )
    op.execute("""
        CREATE TABLE notifier.dead_letters (
          id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
          topic text NOT NULL,
          message_id text NOT NULL,
          key text NOT NULL,
          headers jsonb NOT NULL,
          value bytea NOT NULL,
          reason text NOT NULL,
          created_at timestamptz NOT NULL,
          retried_at timestamptz)
    """)
    # Whoever sends what we cannot read may also use an id twice: the bytes decide.
    op.execute(
        "CREATE UNIQUE INDEX dead_letters_once "
        "ON notifier.dead_letters (topic, message_id, sha256(value))"
    )
    op.execute("CREATE INDEX dead_letters_newest ON notifier.dead_letters (created_at, id)")

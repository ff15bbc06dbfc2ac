"""notifier: alerts held, gathered, snoozed, muted and escalated, each with its reason; channels that rest.

Revision ID: 0008
"""

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    # Nullable or with a default: the version before goes on writing rows without them.
    op.execute("""
        ALTER TABLE notifier.alerts
          ADD COLUMN kind text NOT NULL DEFAULT 'transition'
            CHECK (kind IN ('transition', 'escalation')),
          ADD COLUMN journey_id text,
          ADD COLUMN urgent boolean NOT NULL DEFAULT false,
          ADD COLUMN snoozed_until timestamptz,
          ADD COLUMN escalated_from uuid,
          ADD COLUMN why text
    """)
    op.execute("COMMENT ON COLUMN notifier.alerts.why IS 'why it was escalated to whom it is for'")
    op.execute("""
        ALTER TABLE notifier.alerts
          DROP CONSTRAINT alerts_status_check,
          ADD CONSTRAINT alerts_status_check CHECK (status IN
            ('pending', 'delivered', 'acknowledged', 'suppressed', 'dead_lettered')) NOT VALID
    """)
    op.execute("""
        ALTER TABLE notifier.deliveries
          ADD COLUMN addressee_id text,
          ADD COLUMN why text,
          ADD COLUMN gather boolean NOT NULL DEFAULT false,
          ADD COLUMN blocks boolean NOT NULL DEFAULT false,
          ADD COLUMN digest_id uuid,
          ADD COLUMN ambiguous boolean NOT NULL DEFAULT false,
          ADD COLUMN provider_ref text,
          ADD COLUMN body text
    """)
    op.execute("""
        ALTER TABLE notifier.deliveries
          DROP CONSTRAINT deliveries_status_check,
          ADD CONSTRAINT deliveries_status_check CHECK (status IN
            ('pending', 'claimed', 'delivered', 'failed', 'skipped', 'suppressed', 'dead')) NOT VALID
    """)
    for column, text in {
        "addressee_id": "whose: with the channel, the lane in which order is kept",
        "why": "why it was held, gathered, merged or suppressed",
        "gather": "goes out in one message with what else is due in its lane",
        "blocks": "failed before and comes again: the lane waits behind it",
        "digest_id": "the message that told this alert with others",
        "ambiguous": "no answer came after it was handed over: it may have arrived",
        "body": "its text where the kind of channel has a template of its own",
        "provider_ref": "what the service calls the message: later ones join its thread",
    }.items():
        op.execute(f"COMMENT ON COLUMN notifier.deliveries.{column} IS '{text}'")
    op.execute("""
        UPDATE notifier.deliveries d SET addressee_id = a.addressee_id
        FROM notifier.alerts a WHERE a.id = d.alert_id AND d.status IN ('pending', 'claimed')
    """)
    op.execute(
        "CREATE INDEX deliveries_lane ON notifier.deliveries "
        "(channel, (coalesce(addressee_id, alert_id::text)), alert_id) WHERE status IN ('pending', 'claimed')"
    )
    # How much somebody was sent in the last hour.
    op.execute(
        "CREATE INDEX deliveries_sent ON notifier.deliveries (channel, addressee_id, finished_at) "
        "WHERE status = 'delivered'"
    )
    op.execute(
        "CREATE INDEX deliveries_of_digest ON notifier.deliveries (digest_id) "
        "WHERE digest_id IS NOT NULL"
    )
    op.execute(
        "CREATE INDEX alerts_of_journey ON notifier.alerts (journey_id, addressee_id, id) "
        "WHERE journey_id IS NOT NULL"
    )
    op.execute("""
        CREATE TABLE notifier.digests (
          id uuid PRIMARY KEY,
          addressee_id text,
          channel text NOT NULL,
          subject text NOT NULL,
          body text NOT NULL,
          why text NOT NULL,
          created_at timestamptz NOT NULL)
    """)
    op.execute("""
        CREATE TABLE notifier.mutes (
          person_id text NOT NULL,
          lead_id uuid NOT NULL,
          until timestamptz,
          created_at timestamptz NOT NULL,
          created_by text NOT NULL,
          PRIMARY KEY (person_id, lead_id))
    """)
    # One row an alert that waits for an acknowledgement; the row's lock makes each step fire once.
    op.execute("""
        CREATE TABLE notifier.escalations (
          alert_id uuid PRIMARY KEY,
          after_s int NOT NULL CHECK (after_s > 0),
          due_at timestamptz NOT NULL,
          told text[] NOT NULL DEFAULT '{}',
          ended_at timestamptz,
          why text,
          CHECK ((ended_at IS NULL) = (why IS NULL)))
    """)
    op.execute(
        "CREATE INDEX escalations_due ON notifier.escalations (due_at) WHERE ended_at IS NULL"
    )
    op.execute("""
        CREATE TABLE notifier.channels (
          label text PRIMARY KEY,
          failures int NOT NULL CHECK (failures >= 0),
          rests_until timestamptz,
          reason text,
          changed_at timestamptz NOT NULL)
    """)
    op.execute(
        "COMMENT ON TABLE notifier.channels IS "
        "'channels that fail or rest, for all replicas; one that works has no row'"
    )
    op.execute("""
        CREATE TABLE notifier.used_links (
          id text PRIMARY KEY,
          used_at timestamptz NOT NULL)
    """)

"""Schema stage: what connectors wrote into CRMs, whose record is whose lead, and the echoes of these writes.

Revision ID: 0016
"""

from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    op.execute("""
        CREATE TABLE stage.connector_values (
          subscription_id uuid NOT NULL,
          record text NOT NULL,
          record_id text NOT NULL,
          field text NOT NULL,
          value_hash text NOT NULL,
          told_at timestamptz NOT NULL,
          PRIMARY KEY (subscription_id, record, record_id, field))
    """)
    op.execute(
        "COMMENT ON TABLE stage.connector_values IS 'Baton''s value of each field of a CRM''s record at the "
        "last delivery, written or given way to: another value now is news'"
    )
    op.execute("""
        CREATE TABLE stage.connector_writes (
          id uuid NOT NULL,
          field text NOT NULL,
          subscription_id uuid NOT NULL,
          connector text NOT NULL,
          record text NOT NULL,
          record_id text,
          lead_id text NOT NULL,
          value_hash text NOT NULL,
          creates boolean NOT NULL,
          is_key boolean NOT NULL,
          begun_at timestamptz NOT NULL,
          ended_at timestamptz,
          echoed_by text[] NOT NULL DEFAULT '{}',
          PRIMARY KEY (id, field))
    """)
    op.execute(
        "COMMENT ON COLUMN stage.connector_writes.record_id IS 'null: a new record whose id the CRM has "
        "not answered yet; its webhook may come before'"
    )
    op.execute(
        "COMMENT ON COLUMN stage.connector_writes.echoed_by IS 'the sources that told of this write: "
        "each does once'"
    )
    op.execute(
        "CREATE INDEX connector_writes_of ON stage.connector_writes (connector, record, record_id)"
    )
    op.execute(
        "CREATE INDEX connector_writes_unknown ON stage.connector_writes (connector, begun_at) "
        "WHERE record_id IS NULL"
    )
    op.execute("CREATE INDEX connector_writes_old ON stage.connector_writes (begun_at)")
    op.execute("""
        CREATE TABLE stage.connector_links (
          system text NOT NULL,
          record_id text NOT NULL,
          lead_id text NOT NULL,
          connector text NOT NULL,
          linked_at timestamptz NOT NULL,
          told_at timestamptz,
          PRIMARY KEY (system, record_id, lead_id))
    """)
    op.execute(
        "COMMENT ON COLUMN stage.connector_links.told_at IS 'when the lead event crm.linked was committed: "
        "from then on the record''s id names the lead'"
    )
    op.execute("CREATE INDEX connector_links_of ON stage.connector_links (lead_id)")
    op.execute(
        "CREATE INDEX connector_links_untold ON stage.connector_links (linked_at) "
        "WHERE told_at IS NULL"
    )
    op.execute("""
        CREATE TABLE stage.connector_places (
          subscription_id uuid NOT NULL,
          lead_id text NOT NULL,
          position bigint NOT NULL,
          PRIMARY KEY (subscription_id, lead_id))
    """)
    op.execute(
        "COMMENT ON COLUMN stage.connector_places.position IS 'of the newest event of the lead that was "
        "written: an older one that is delivered again would set the CRM back'"
    )
    op.execute("""
        CREATE TABLE stage.echoes (
          source text NOT NULL,
          event_id text NOT NULL,
          connector text,
          record text,
          record_id text,
          recorded_at timestamptz NOT NULL DEFAULT now(),
          PRIMARY KEY (source, event_id))
    """)
    op.execute(
        "COMMENT ON TABLE stage.echoes IS 'deliveries'' events that said just what Baton wrote: recorded, "
        "applied to no lead; sent again they are the same echo'"
    )
    op.execute("CREATE INDEX echoes_old ON stage.echoes (recorded_at)")

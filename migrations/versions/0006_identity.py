"""stage: merges of leads and what undoes them; barriers; accounts.

Revision ID: 0006
"""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.execute("""
        CREATE TABLE stage.merges (
          id uuid PRIMARY KEY,
          survivor uuid NOT NULL,
          merged uuid NOT NULL,
          event_source text NOT NULL,
          event_id text NOT NULL,
          event_type text NOT NULL,
          occurred_at timestamptz NOT NULL,
          recorded_at timestamptz NOT NULL,
          identities text[] NOT NULL,
          reason text NOT NULL,
          actor text,
          owners jsonb NOT NULL,
          undone_at timestamptz,
          undone_by text,
          undone_reason text,
          undone_event_id text,
          CHECK (survivor <> merged),
          CHECK ((undone_at IS NULL) = (undone_event_id IS NULL)))
    """)
    op.execute("CREATE INDEX merges_into ON stage.merges (survivor)")
    op.execute("CREATE UNIQUE INDEX merges_of ON stage.merges (merged) WHERE undone_at IS NULL")
    op.execute(
        "COMMENT ON COLUMN stage.merges.owners IS "
        "'the survivor''s owners before, by journey: what undoing the merge gives back'"
    )
    op.execute("""
        CREATE TABLE stage.barriers (
          one uuid NOT NULL,
          other uuid NOT NULL,
          merge_id uuid NOT NULL,
          inherited_by uuid,
          recorded_at timestamptz NOT NULL DEFAULT now(),
          PRIMARY KEY (one, other),
          CHECK (one < other))
    """)
    op.execute("CREATE INDEX barriers_of_other ON stage.barriers (other)")
    op.execute(
        "COMMENT ON TABLE stage.barriers IS "
        "'leads that were parted by hand: no event merges them again by itself'"
    )
    for table in ("events", "identities"):
        op.execute(f"ALTER TABLE stage.{table} ADD COLUMN own_lead_id uuid")
        op.execute(
            f"COMMENT ON COLUMN stage.{table}.own_lead_id IS "
            "'whose it was before the first merge; null: it came after, or there was none'"
        )
    op.execute("ALTER TABLE stage.leads ADD COLUMN merged_into uuid")
    op.execute("ALTER TABLE stage.leads ADD COLUMN regrouped_by xid8")
    op.execute(
        "COMMENT ON COLUMN stage.leads.regrouped_by IS "
        "'the transaction that last moved events and identities to or from this lead: whoever looked "
        "identities up before its commit must look again'"
    )
    op.execute("ALTER TABLE stage.leads ADD COLUMN account text")
    op.execute(
        "CREATE INDEX leads_merged ON stage.leads (merged_into) WHERE merged_into IS NOT NULL"
    )
    op.execute(
        "CREATE INDEX leads_of_account ON stage.leads (account, id) WHERE account IS NOT NULL"
    )
    # The journeys of a merged lead have ended: their transitions are history of that lead alone.
    op.execute("""
        CREATE OR REPLACE VIEW stage.visits AS
        SELECT t.journey_id, t.lead_id, t.playbook, t.from_stage AS stage,
               t.visit_entered_at AS entered_at, t.occurred_at AS left_at, t.to_stage AS next_stage,
               t.sequence
        FROM stage.transitions t JOIN stage.journeys j ON j.id = t.journey_id
        WHERE t.replaced_by IS NULL AND t.kind <> 'retraction'
        UNION ALL
        SELECT id, lead_id, playbook, stage, entered_at, NULL, NULL, sequence + 1 FROM stage.journeys
    """)

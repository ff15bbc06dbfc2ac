"""stage: leads, identities, journeys, events, transitions, playbook versions, rotations.

No foreign keys on the tables the lane writes: it inserts a lead and everything of it in one
transaction and nothing deletes a lead but the erase; a check per row would cost more than the row.
`baton verify` looks for orphans instead (docs/decisions/0003).

Revision ID: 0002
"""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.execute("CREATE SCHEMA stage")
    op.execute("""
        CREATE TABLE stage.playbook_versions (
          epoch int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
          name text NOT NULL,
          version int NOT NULL CHECK (version > 0),
          digest text NOT NULL,
          source text NOT NULL,
          activated_at timestamptz NOT NULL DEFAULT now(),
          UNIQUE (name, version))
    """)
    op.execute(
        "COMMENT ON COLUMN stage.playbook_versions.epoch IS "
        "'an event is folded under the newest version of each playbook at its epoch'"
    )
    op.execute("""
        CREATE TABLE stage.events (
          source text NOT NULL,
          id text NOT NULL,
          type text NOT NULL,
          time timestamptz NOT NULL,
          recorded_at timestamptz NOT NULL,
          lead_id uuid,
          deal text NOT NULL,
          subject text,
          data jsonb NOT NULL,
          envelope jsonb,
          epoch int NOT NULL,
          PRIMARY KEY (source, id))
    """)
    op.execute(
        "CREATE INDEX events_of_lead ON stage.events (lead_id, time) WHERE lead_id IS NOT NULL"
    )
    op.execute("""
        CREATE TABLE stage.leads (
          id uuid PRIMARY KEY,
          email text,
          name text,
          company text,
          external_ids jsonb NOT NULL DEFAULT '{}',
          attributes jsonb NOT NULL,
          fit int NOT NULL,
          intent int NOT NULL,
          state bytea NOT NULL,
          first_seen_at timestamptz NOT NULL,
          last_seen_at timestamptz NOT NULL,
          created_at timestamptz NOT NULL DEFAULT now(),
          updated_at timestamptz NOT NULL DEFAULT now())
        WITH (fillfactor = 80)
    """)
    op.execute(
        "COMMENT ON COLUMN stage.leads.state IS "
        "'the fold of the lead''s events (msgpack); the lane''s only input besides new events'"
    )
    op.execute("""
        CREATE TABLE stage.identities (
          kind text NOT NULL,
          value text NOT NULL,
          lead_id uuid NOT NULL,
          recorded_at timestamptz NOT NULL DEFAULT now(),
          PRIMARY KEY (kind, value))
    """)
    op.execute("CREATE INDEX identities_of_lead ON stage.identities (lead_id)")
    op.execute("""
        CREATE TABLE stage.journeys (
          id uuid PRIMARY KEY,
          lead_id uuid NOT NULL,
          playbook text NOT NULL,
          key text NOT NULL,
          stage text NOT NULL,
          furthest_stage text NOT NULL,
          started_at timestamptz NOT NULL,
          entered_at timestamptz NOT NULL,
          sequence int NOT NULL CHECK (sequence >= 0),
          owners jsonb NOT NULL,
          held jsonb NOT NULL,
          deal jsonb NOT NULL,
          playbook_version int NOT NULL,
          updated_at timestamptz NOT NULL DEFAULT now(),
          UNIQUE (lead_id, playbook, key))
        WITH (fillfactor = 80)
    """)
    op.execute("CREATE INDEX journeys_in_stage ON stage.journeys (playbook, stage, entered_at)")
    op.execute("""
        CREATE TABLE stage.transitions (
          journey_id uuid NOT NULL,
          sequence int NOT NULL CHECK (sequence > 0),
          id uuid NOT NULL,
          lead_id uuid NOT NULL,
          kind text NOT NULL CHECK (kind IN ('transition', 'correction', 'retraction')),
          playbook text NOT NULL,
          playbook_version int NOT NULL,
          from_stage text NOT NULL,
          to_stage text NOT NULL,
          visit_entered_at timestamptz NOT NULL,
          occurred_at timestamptz NOT NULL,
          recorded_at timestamptz NOT NULL,
          event_source text NOT NULL,
          event_id text NOT NULL,
          event_type text NOT NULL,
          rule text,
          actor text,
          role text NOT NULL,
          owner_id text,
          handoff boolean NOT NULL,
          skipped text[] NOT NULL,
          explanation text NOT NULL,
          why jsonb NOT NULL,
          replaces uuid[] NOT NULL,
          replaced_by uuid,
          PRIMARY KEY (journey_id, sequence),
          CHECK (kind <> 'transition' OR cardinality(replaces) = 0),
          CHECK ((kind = 'retraction') = (from_stage = to_stage)),
          CHECK (occurred_at >= visit_entered_at))
    """)
    op.execute(
        "COMMENT ON COLUMN stage.transitions.visit_entered_at IS "
        "'when the visit that this transition ends began'"
    )
    # A visit is one stay in a stage: each transition ends one, the journey's present stage is one more.
    op.execute("""
        CREATE VIEW stage.visits AS
        SELECT journey_id, lead_id, playbook, from_stage AS stage,
               visit_entered_at AS entered_at, occurred_at AS left_at, to_stage AS next_stage, sequence
        FROM stage.transitions WHERE replaced_by IS NULL AND kind <> 'retraction'
        UNION ALL
        SELECT id, lead_id, playbook, stage, entered_at, NULL, NULL, sequence + 1 FROM stage.journeys
    """)
    op.execute("""
        CREATE TABLE stage.rotations (
          role text PRIMARY KEY,
          counts jsonb NOT NULL)
    """)
    op.execute(
        "COMMENT ON TABLE stage.rotations IS "
        "'how many journeys each person of a role was given; locked while owners are chosen'"
    )
    # What the lane sends: one array of rows instead of an array a column costs the client half and the
    # server less. Types of their own, because a table may get columns while an old version still runs.
    op.execute("""
        CREATE TYPE stage.event_row AS (
          source text, id text, type text, time timestamptz, recorded_at timestamptz, lead_id uuid,
          deal text, subject text, data jsonb, envelope jsonb, epoch int)
    """)
    op.execute("""
        CREATE TYPE stage.lead_row AS (
          id uuid, email text, name text, company text, external_ids jsonb, attributes jsonb,
          fit int, intent int, state bytea, first_seen_at timestamptz, last_seen_at timestamptz)
    """)
    op.execute("""
        CREATE TYPE stage.journey_row AS (
          id uuid, lead_id uuid, playbook text, key text, stage text, furthest_stage text,
          started_at timestamptz, entered_at timestamptz, sequence int, owners jsonb, held jsonb,
          deal jsonb, playbook_version int)
    """)
    op.execute("""
        CREATE TYPE stage.transition_row AS (
          journey_id uuid, sequence int, id uuid, lead_id uuid, kind text, playbook text,
          playbook_version int, from_stage text, to_stage text, visit_entered_at timestamptz,
          occurred_at timestamptz, recorded_at timestamptz, event_source text, event_id text,
          event_type text, rule text, actor text, role text, owner_id text, handoff boolean,
          skipped text[], explanation text, why jsonb, replaces uuid[])
    """)

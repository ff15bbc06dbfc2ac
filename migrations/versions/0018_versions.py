"""stage: who published a playbook version and why, what is to be published later, and who still has to move.

Columns of ``playbook_versions`` only come, each with a default: a process of the version before publishes its
files as ever, and follows by ``epoch, name, version, source`` alone.

Revision ID: 0018
"""

from alembic import op

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    # In the order in which a batch of the version before reads them: 0019 changes the others, and whoever
    # takes them the other way round waits for each other.
    op.execute(
        "LOCK TABLE stage.events, stage.handoffs, stage.playbook_versions IN ACCESS EXCLUSIVE MODE"
    )
    op.execute("""
        ALTER TABLE stage.playbook_versions
          ADD COLUMN author text,
          ADD COLUMN message text,
          ADD COLUMN diff jsonb,
          ADD COLUMN migrate jsonb NOT NULL DEFAULT '{}',
          ADD COLUMN restores int CHECK (restores > 0 AND restores < version),
          ADD COLUMN published_at timestamptz NOT NULL DEFAULT now()
    """)
    op.execute("UPDATE stage.playbook_versions SET published_at = activated_at")
    for column, meaning in {
        "author": "who published it; null: a file at the start of a process",
        "diff": "how it differs from the version before it, as its author saw it",
        "migrate": "where the journeys of stages that are gone go on: {stage: stage}",
        "restores": "the version whose text it brings back",
        "published_at": "when its author asked for it; activated_at is when it began to hold",
    }.items():
        op.execute(f"COMMENT ON COLUMN stage.playbook_versions.{column} IS '{meaning}'")
    op.execute("""
        CREATE TABLE stage.scheduled_publications (
          id uuid PRIMARY KEY,
          name text NOT NULL,
          digest text NOT NULL,
          source text NOT NULL,
          author text NOT NULL,
          message text NOT NULL,
          diff jsonb,
          migrate jsonb NOT NULL DEFAULT '{}',
          restores int,
          base_version int,
          activate_at timestamptz NOT NULL,
          state text NOT NULL DEFAULT 'waiting'
            CHECK (state IN ('waiting', 'activated', 'cancelled', 'refused')),
          reason text,
          version int,
          created_at timestamptz NOT NULL DEFAULT now(),
          ended_at timestamptz,
          ended_by text,
          CHECK ((state = 'waiting') = (ended_at IS NULL)),
          CHECK ((state = 'activated') = (version IS NOT NULL)))
    """)
    op.execute(
        "CREATE INDEX ON stage.scheduled_publications (activate_at, id) WHERE state = 'waiting'"
    )
    op.execute("""
        CREATE TABLE stage.playbook_sweeps (
          epoch int PRIMARY KEY,
          name text NOT NULL,
          version int NOT NULL,
          after uuid,
          due_at timestamptz NOT NULL DEFAULT now(),
          pass int NOT NULL DEFAULT 1,
          moved bigint NOT NULL DEFAULT 0,
          begun_at timestamptz NOT NULL DEFAULT now(),
          done_at timestamptz)
    """)
    op.execute("CREATE INDEX ON stage.playbook_sweeps (due_at) WHERE done_at IS NULL")
    op.execute(
        "COMMENT ON TABLE stage.playbook_sweeps IS "
        "'versions of which journeys have to hear that wait in a stage that is gone, or may begin'"
    )
    # A stage that got another name is no visit of its own.
    op.execute("""
        CREATE OR REPLACE VIEW stage.visits AS
        SELECT t.journey_id, t.lead_id, t.playbook, t.from_stage AS stage,
               t.visit_entered_at AS entered_at, t.occurred_at AS left_at, t.to_stage AS next_stage,
               t.sequence
        FROM stage.transitions t JOIN stage.journeys j ON j.id = t.journey_id
        WHERE t.replaced_by IS NULL AND t.kind <> 'retraction'
          AND NOT (coalesce(t.rule, '') = 'migrate' AND coalesce(t.why ->> 'renamed', '') = 'true')
        UNION ALL
        SELECT id, lead_id, playbook, stage, entered_at, NULL, NULL, sequence + 1 FROM stage.journeys
    """)

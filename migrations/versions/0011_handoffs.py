"""Schema stage: handoffs with their answers, and clocks that fire once.

Revision ID: 0011
"""

from alembic import op

revision = "0011"
down_revision = "0010"


HANDOFF = """
  id uuid, journey_id uuid, lead_id uuid, playbook text, key text, stage text, role text,
  from_role text, round int, person_id text, person_name text, giver_id text, transition_id uuid,
  offered_at timestamptz, recorded_at timestamptz, asked_at timestamptz, due_at timestamptz, state text,
  overdue_at timestamptz, answered_at timestamptz, answered_by text, implied boolean, reason text"""
CLOCK = """
  id uuid, journey_id uuid, lead_id uuid, playbook text, deal text, key text, kind text, stage text,
  role text, person_id text, handoff_id uuid, since timestamptz, begin timestamptz,
  deadline timestamptz, step int,
  due_at timestamptz, missed_at timestamptz"""


def upgrade() -> None:
    # What a batch sends, as arrays: it stays as it is when a later version adds a column to the table.
    op.execute(f"CREATE TYPE stage.handoff_row AS ({HANDOFF})")
    op.execute(f"CREATE TYPE stage.clock_row AS ({CLOCK})")
    op.execute("""
        CREATE TABLE stage.handoffs (
          id uuid PRIMARY KEY,
          journey_id uuid NOT NULL,
          lead_id uuid NOT NULL,
          playbook text NOT NULL,
          key text NOT NULL,
          stage text NOT NULL,
          role text NOT NULL,
          from_role text NOT NULL,
          round int NOT NULL,
          person_id text,
          person_name text,
          giver_id text,
          transition_id uuid,
          offered_at timestamptz NOT NULL,
          recorded_at timestamptz NOT NULL,
          asked_at timestamptz,
          due_at timestamptz,
          state text NOT NULL,
          overdue_at timestamptz,
          answered_at timestamptz,
          answered_by text,
          implied boolean NOT NULL DEFAULT false,
          reason text,
          updated_at timestamptz NOT NULL DEFAULT now())
    """)
    op.execute(
        "COMMENT ON COLUMN stage.handoffs.state IS 'offered, accepted, rejected or withdrawn; "
        "overdue is beside it: a late answer is an answer'"
    )
    op.execute("CREATE INDEX handoffs_of_lead ON stage.handoffs (lead_id)")
    op.execute(
        "CREATE INDEX handoffs_waiting ON stage.handoffs (offered_at, id) WHERE state = 'offered'"
    )
    op.execute("CREATE INDEX handoffs_in_time ON stage.handoffs (offered_at, id)")
    op.execute("""
        CREATE TABLE stage.clocks (
          id uuid PRIMARY KEY,
          journey_id uuid NOT NULL,
          lead_id uuid NOT NULL,
          playbook text NOT NULL,
          deal text NOT NULL,
          key text NOT NULL,
          kind text NOT NULL,
          stage text NOT NULL,
          role text NOT NULL,
          person_id text,
          handoff_id uuid,
          since timestamptz NOT NULL,
          begin timestamptz NOT NULL,
          deadline timestamptz NOT NULL,
          step int NOT NULL,
          due_at timestamptz,
          state text NOT NULL,
          missed_at timestamptz,
          ended_at timestamptz,
          claimed_until timestamptz,
          created_at timestamptz NOT NULL DEFAULT now(),
          updated_at timestamptz NOT NULL DEFAULT now())
    """)
    op.execute(
        "COMMENT ON TABLE stage.clocks IS 'deadlines: kind is handoff, stage (time in a stage) or "
        "activity (time without any); due_at is when the next step fires, deadline when it is missed'"
    )
    op.execute(
        "COMMENT ON COLUMN stage.clocks.state IS 'running (without due_at: all its steps fired); met: "
        "it ended before its deadline; missed: it ended after; void: it ended without either'"
    )
    op.execute(
        "CREATE INDEX clocks_due ON stage.clocks (due_at) WHERE state = 'running' AND due_at IS NOT NULL"
    )
    op.execute("CREATE INDEX clocks_of_lead ON stage.clocks (lead_id)")

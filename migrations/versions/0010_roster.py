"""roster: the people, as both services read them.

Revision ID: 0010
"""

from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.execute("CREATE SCHEMA roster")
    op.execute("""
        CREATE TABLE roster.people (
          id text PRIMARY KEY,
          document jsonb NOT NULL,
          version int NOT NULL DEFAULT 1 CHECK (version > 0),
          place bigint GENERATED ALWAYS AS IDENTITY,
          left_at timestamptz,
          updated_at timestamptz NOT NULL DEFAULT now())
    """)
    op.execute(
        "COMMENT ON COLUMN roster.people.place IS 'the order of the roster: routing breaks ties by it'"
    )
    op.execute("""
        CREATE TABLE roster.revision (
          single boolean PRIMARY KEY DEFAULT true CHECK (single),
          revision bigint NOT NULL)
    """)
    op.execute("INSERT INTO roster.revision (revision) VALUES (0)")
    op.execute(
        "COMMENT ON TABLE roster.revision IS "
        "'moved with every change of people; 0: nobody wrote yet, and the file holds'"
    )
    # Volatile and not SQL: it sees what was committed while its statement waited for a lock.
    op.execute("""
        CREATE FUNCTION roster.revision_now() RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
        BEGIN RETURN (SELECT revision FROM roster.revision); END $$
    """)

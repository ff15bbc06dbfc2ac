"""stage: what was audited so far goes into the one audit, and so does what an older version still adds.

`stage.audit` stays, for the version before; nothing reads it any more.

Revision ID: 0022
"""

from alembic import op

revision = "0022"
down_revision = "0021"

_VIA = """CASE WHEN {0}.key_id IS NULL THEN 'system'
  ELSE coalesce((SELECT CASE k.kind WHEN 'session' THEN 'session' ELSE 'key' END FROM access.keys k
    WHERE k.id = {0}.key_id), 'key') END"""


_HASHED = [
    "last.seq::text",
    """to_char(row.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')""",
    "row.actor", "row.via", "row.key_id", "NULL", "row.action", "row.kind", "row.subject", "NULL",
    "row.before::text", "row.after::text",
]  # fmt: skip


def upgrade() -> None:
    op.execute(f"""
        CREATE FUNCTION stage.audit_on() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
          INSERT INTO audit.noted (at, actor, via, key_id, action, kind, subject, before, after)
          VALUES (NEW.at, NEW.actor, {_VIA.format("NEW")}, NEW.key_id, NEW.action, NEW.kind, NEW.subject,
            NEW.before::json, NEW.after::json);
          RETURN NULL;
        END $$
    """)
    op.execute("""
        CREATE TRIGGER audit_goes_on AFTER INSERT ON stage.audit
        FOR EACH ROW EXECUTE FUNCTION stage.audit_on()
    """)
    _chain_old_rows()


def _chain_old_rows() -> None:
    """Chain what is there as `audit.chain` does, in one loop: by the trigger, each moves the head's row."""
    op.execute("ALTER TABLE audit.entries DISABLE TRIGGER entries_come_from_the_chain")
    op.execute("ALTER TABLE audit.head DISABLE TRIGGER head_moves_with_the_chain")
    text = " || ".join(f"audit.netstring({each})" for each in _HASHED)
    op.execute(f"""
        DO $$
        DECLARE
          last audit.head;
          row record;
        BEGIN
          SELECT * INTO STRICT last FROM audit.head FOR UPDATE;
          FOR row IN
            SELECT a.at, a.actor, {_VIA.format("a")} AS via, a.key_id, a.action, a.kind, a.subject,
              a.before::json AS before, a.after::json AS after
            FROM stage.audit a ORDER BY a.id
          LOOP
            last.seq := last.seq + 1;
            last.digest := sha256(last.digest || {text});
            INSERT INTO audit.entries
              (seq, at, actor, via, key_id, action, kind, subject, before, after, digest)
            VALUES (last.seq, row.at, row.actor, row.via, row.key_id, row.action, row.kind, row.subject,
              row.before, row.after, last.digest);
          END LOOP;
          UPDATE audit.head SET seq = last.seq, digest = last.digest;
        END $$
    """)
    op.execute("ALTER TABLE audit.entries ENABLE ALWAYS TRIGGER entries_come_from_the_chain")
    op.execute("ALTER TABLE audit.head ENABLE ALWAYS TRIGGER head_moves_with_the_chain")

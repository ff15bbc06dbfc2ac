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
    op.execute(f"""
        INSERT INTO audit.noted (at, actor, via, key_id, action, kind, subject, before, after)
        SELECT a.at, a.actor, {_VIA.format("a")}, a.key_id, a.action, a.kind, a.subject, a.before::json,
          a.after::json
        FROM stage.audit a ORDER BY a.id
    """)

"""audit: what people did, each entry chained to the one before it (docs/decisions/0027).

Whoever acts adds a row to `audit.noted` in the transaction of the deed. At its commit, when nothing more is
locked, the row becomes the next entry: the head of the chain is locked last, by everybody.

Revision ID: 0020
"""

from alembic import op

revision = "0020"
down_revision = "0019"

_FIELDS = """
          at timestamptz NOT NULL DEFAULT clock_timestamp(),
          actor text NOT NULL,
          via text NOT NULL CHECK (via IN ('key', 'session', 'link', 'slack', 'command', 'system')),
          key_id text,
          on_behalf_of text,
          action text NOT NULL,
          kind text NOT NULL,
          subject text NOT NULL,
          lead_id uuid,
          before json,
          after json"""
_NAMES = "at, actor, via, key_id, on_behalf_of, action, kind, subject, lead_id, before, after"
_HASHED = [
    """to_char(NEW.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')""",
    *(f"NEW.{name}" for name in ("actor", "via", "key_id", "on_behalf_of", "action", "kind", "subject")),
    "NEW.lead_id::text", "NEW.before::text", "NEW.after::text",
]  # fmt: skip


def upgrade() -> None:
    op.execute("CREATE SCHEMA audit")
    op.execute(f"""
        CREATE TABLE audit.noted (
          id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, {_FIELDS})
    """)
    op.execute(
        "COMMENT ON TABLE audit.noted IS 'deeds of transactions under way; empty between them'"
    )
    op.execute(f"""
        CREATE TABLE audit.entries (
          seq bigint PRIMARY KEY, {_FIELDS},
          digest bytea NOT NULL)
    """)
    op.execute(
        "COMMENT ON COLUMN audit.entries.digest IS "
        "'SHA-256 over the digest of the entry before and this entry: see docs/decisions/0027'"
    )
    op.execute("CREATE INDEX entries_of_actor ON audit.entries (actor, seq)")
    op.execute("CREATE INDEX entries_of_subject ON audit.entries (kind, subject, seq)")
    op.execute(
        "CREATE INDEX entries_of_lead ON audit.entries (lead_id, seq) WHERE lead_id IS NOT NULL"
    )
    op.execute("CREATE INDEX entries_at ON audit.entries (at)")
    op.execute("""
        CREATE TABLE audit.head (
          single boolean PRIMARY KEY DEFAULT true CHECK (single),
          seq bigint NOT NULL,
          digest bytea NOT NULL)
    """)
    op.execute("INSERT INTO audit.head (seq, digest) VALUES (0, decode(repeat('00', 32), 'hex'))")
    _chain()
    _only_ever_added_to()


def _chain() -> None:
    # Fields with their lengths (netstrings): no two entries have the same text.
    op.execute("""
        CREATE FUNCTION audit.netstring(field text) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
          SELECT CASE WHEN field IS NULL THEN '-,'::bytea ELSE
            convert_to(octet_length(convert_to(field, 'UTF8')) || ':' || field || ',', 'UTF8') END
        $$
    """)
    text = " || ".join(f"audit.netstring({each})" for each in ("(last.seq + 1)::text", *_HASHED))
    # Definer's rights: whoever acts need only be allowed to add to audit.noted.
    op.execute(f"""
        CREATE FUNCTION audit.chain() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp AS $$
        DECLARE
          last audit.head;
          found bytea;
        BEGIN
          SELECT * INTO STRICT last FROM audit.head FOR UPDATE;
          found := sha256(last.digest || {text});
          INSERT INTO audit.entries (seq, {_NAMES}, digest)
          VALUES (last.seq + 1, {", ".join(f"NEW.{n}" for n in _NAMES.split(", "))}, found);
          UPDATE audit.head SET seq = last.seq + 1, digest = found;
          DELETE FROM audit.noted WHERE id = NEW.id;
          RETURN NULL;
        END $$
    """)
    op.execute("""
        CREATE CONSTRAINT TRIGGER noted_is_chained AFTER INSERT ON audit.noted
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION audit.chain()
    """)


def _only_ever_added_to() -> None:
    op.execute("""
        CREATE FUNCTION audit.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
          RAISE EXCEPTION 'the audit is only ever added to' USING ERRCODE = 'insufficient_privilege';
        END $$
    """)
    op.execute("""
        CREATE TRIGGER entries_are_kept BEFORE UPDATE OR DELETE OR TRUNCATE ON audit.entries
        FOR EACH STATEMENT EXECUTE FUNCTION audit.refuse()
    """)
    op.execute("""
        CREATE TRIGGER entries_come_from_the_chain BEFORE INSERT ON audit.entries
        FOR EACH STATEMENT WHEN (pg_trigger_depth() < 1) EXECUTE FUNCTION audit.refuse()
    """)
    op.execute("""
        CREATE TRIGGER head_moves_with_the_chain BEFORE INSERT OR UPDATE ON audit.head
        FOR EACH STATEMENT WHEN (pg_trigger_depth() < 1) EXECUTE FUNCTION audit.refuse()
    """)
    op.execute("""
        CREATE TRIGGER head_is_kept BEFORE DELETE OR TRUNCATE ON audit.head
        FOR EACH STATEMENT EXECUTE FUNCTION audit.refuse()
    """)
    op.execute("""
        CREATE TRIGGER noted_is_as_it_was BEFORE UPDATE OR TRUNCATE ON audit.noted
        FOR EACH STATEMENT EXECUTE FUNCTION audit.refuse()
    """)
    # A session that says it is a replica does not get round them.
    for table, names in (
        ("entries", ("entries_are_kept", "entries_come_from_the_chain")),
        ("head", ("head_moves_with_the_chain", "head_is_kept")),
        ("noted", ("noted_is_as_it_was", "noted_is_chained")),
    ):
        for name in names:
            op.execute(f"ALTER TABLE audit.{table} ENABLE ALWAYS TRIGGER {name}")
    op.execute("REVOKE ALL ON ALL TABLES IN SCHEMA audit FROM PUBLIC")

"""stage: fair turns, who holds a journey, who owns an account, and who changed what.

Revision ID: 0009
"""

from typing import Any

from alembic import op
from ruamel.yaml import YAML
from sqlalchemy import text

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    # The version before writes counts alone: what is owed then stands still.
    op.execute("ALTER TABLE stage.rotations ADD COLUMN fairness jsonb NOT NULL DEFAULT '{}'")
    op.execute(
        "COMMENT ON COLUMN stage.rotations.fairness IS "
        "'what is owed to each person, and what each got since the people available last changed'"
    )
    op.execute("ALTER TABLE stage.journeys ADD COLUMN holder text")
    op.execute(
        "COMMENT ON COLUMN stage.journeys.holder IS "
        "'who works on it now: the owner for its stage''s role, while the stage is open or won'"
    )
    _fill_holders()
    op.execute("CREATE INDEX journeys_held ON stage.journeys (holder) WHERE holder IS NOT NULL")
    op.execute("""
        CREATE TABLE stage.account_owners (
          account text NOT NULL,
          role text NOT NULL,
          person_id text NOT NULL,
          since timestamptz NOT NULL DEFAULT now(),
          PRIMARY KEY (account, role))
    """)
    # Not SQL functions: those may be folded into the statement and see its older snapshot.
    op.execute("""
        CREATE FUNCTION stage.journeys_held(people text[]) RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $$
        BEGIN
          RETURN (SELECT coalesce(jsonb_object_agg(holder, n), '{}') FROM (
            SELECT holder, count(*) AS n FROM stage.journeys WHERE holder = ANY(people)
            GROUP BY holder) AS held);
        END $$
    """)
    op.execute("""
        CREATE FUNCTION stage.owners_of_accounts(accounts text[]) RETURNS jsonb
        LANGUAGE plpgsql VOLATILE AS $$
        BEGIN
          RETURN (SELECT coalesce(jsonb_object_agg(account, owners), '{}') FROM (
            SELECT account, jsonb_object_agg(role, person_id) AS owners FROM stage.account_owners
            WHERE account = ANY(accounts) GROUP BY account) AS owned);
        END $$
    """)
    op.execute("""
        CREATE TABLE stage.audit (
          id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
          at timestamptz NOT NULL DEFAULT clock_timestamp(),
          actor text NOT NULL,
          key_id text,
          action text NOT NULL,
          kind text NOT NULL,
          subject text NOT NULL,
          before jsonb,
          after jsonb)
    """)
    op.execute("CREATE INDEX audit_of_subject ON stage.audit (kind, subject, id)")
    op.execute("""
        CREATE FUNCTION stage.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'the audit is only ever added to'; END $$
    """)
    op.execute("""
        CREATE TRIGGER audit_is_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON stage.audit
        FOR EACH STATEMENT EXECUTE FUNCTION stage.refuse_change()
    """)


def _fill_holders() -> None:
    """Say of the journeys there are who holds them: by their last record's role, in stages that are held."""
    for name, source in _newest_playbooks():
        held = _held_stages(YAML(typ="safe").load(source))
        op.get_bind().execute(
            text("""
                UPDATE stage.journeys j SET holder = j.owners -> t.role ->> 'id'
                FROM stage.transitions t
                WHERE t.journey_id = j.id AND t.sequence = j.sequence AND j.playbook = :name
                  AND j.stage = ANY(:held) AND j.owners -> t.role ->> 'id' IS NOT NULL
            """),
            {"name": name, "held": held},
        )


def _newest_playbooks() -> list[Any]:
    return list(
        op.get_bind().execute(
            text("SELECT DISTINCT ON (name) name, source FROM stage.playbook_versions "
                 "ORDER BY name, version DESC")
        )
    )  # fmt: skip


def _held_stages(playbook: Any) -> list[str]:
    path = playbook["path"]
    return [
        key for key, stage in playbook["stages"].items()
        if stage.get("kind", "open" if key in path else "exit") in ("open", "won")
    ]  # fmt: skip

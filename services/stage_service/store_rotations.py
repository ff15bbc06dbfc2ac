"""The rotations of roles, locked while owners are chosen, and what routing asks of the database besides.

The lock is taken after the leads' and before anything is written: see `store` for the order of locks.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from services.stage_service.rotation import Fairness, Turns
from services.stage_service.store import Connection

_fairness = msgspec.json.Decoder(Fairness).decode


class Rotations(msgspec.Struct):
    """What routing needs of the database: the turns of each role, locked, and what it asked besides.

    `loads` are open journeys by person, `account_owners` the owner's id by (account, role); both, and the
    roster's `revision`, are as of after the lock, so that no batch decides beside another.
    """

    turns: dict[str, Turns]
    loads: dict[str, int]
    account_owners: dict[tuple[str, str], str]
    revision: int


# The functions are volatile: each sees what was committed while the lock was waited for, which this
# statement's own snapshot does not.
_LOCK_ROTATIONS = """
WITH locked AS MATERIALIZED (
  SELECT role, counts, fairness FROM stage.rotations WHERE role = ANY($1) ORDER BY role FOR UPDATE),
done AS MATERIALIZED (SELECT count(*) AS roles FROM locked)
SELECT role, counts, fairness, 0::bigint AS revision FROM locked
UNION ALL
SELECT NULL, CASE WHEN cardinality($2::text[]) > 0 THEN stage.journeys_held($2) END,
  CASE WHEN cardinality($3::text[]) > 0 THEN stage.owners_of_accounts($3) END,
  roster.revision_now() FROM done
"""


async def lock_rotations(
    connection: Connection,
    roles: Sequence[str],
    people: Sequence[str] = (),
    accounts: Sequence[str] = (),
) -> Rotations:
    """Lock the rotations of `roles`; also give the loads of `people` and who owns `accounts`.

    Taken as late as can be: it makes batches of all processes wait for each other until commit.
    """
    found = await _locked_rotations(connection, roles, people, accounts)
    missing = [role for role in roles if role not in found.turns]
    if missing:  # the first time ever
        await connection.execute(
            """INSERT INTO stage.rotations (role, counts)
               SELECT role, '{}' FROM unnest($1::text[]) AS k(role) ORDER BY role
               ON CONFLICT (role) DO NOTHING""",
            missing,
        )
        found = await _locked_rotations(connection, roles, people, accounts)
    return found


async def _locked_rotations(
    connection: Connection, roles: Sequence[str], people: Sequence[str], accounts: Sequence[str]
) -> Rotations:
    found = Rotations({}, {}, {}, 0)
    decode = msgspec.json.decode
    for role, one, other, revision in await connection.fetch(
        _LOCK_ROTATIONS, roles, people, accounts
    ):
        if role is not None:
            found.turns[role] = Turns(decode(one), _fairness(other))
            continue
        found.revision = revision
        found.loads = decode(one) if one else {}
        for account, owners in (decode(other) if other else {}).items():
            found.account_owners.update({(account, r): person for r, person in owners.items()})
    return found


async def own_accounts(connection: Connection, owners: dict[tuple[str, str], str]) -> None:
    """Record who owns accounts: {(account, role): person id}."""
    await connection.execute(
        """INSERT INTO stage.account_owners (account, role, person_id)
           SELECT * FROM unnest($1::text[], $2::text[], $3::text[])
           ON CONFLICT (account, role) DO UPDATE SET person_id = excluded.person_id, since = now()""",
        [account for account, _ in owners],
        [role for _, role in owners],
        list(owners.values()),
    )

"""What names a person: e-mail, external ids, phone, anonymous id, under a policy. Pure.

`keys_of` turns the identities as sent into the keys by which leads are found.

Strong are e-mail and external id: two leads named by strong identities of one event are one person.
Phone and anonymous id are shared by families, offices and browsers: they find a lead, but never join two
that are known by strong identities of their own. The address of a shared mailbox (sales@) names nobody
beside a strong identity; alone it stands for the mailbox.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import msgspec
import phonenumbers

Key: TypeAlias = "tuple[str, str]"
"""(kind, value) as ``stage.identities`` holds it."""

LEAD_IDENTITY = "lead"
"""The identity kind of events that Baton's own API makes for a lead it knows by id."""

SHARED_MAILBOXES = frozenset((
    "abuse", "accounting", "accounts", "admin", "administration", "billing", "booking", "bookings",
    "careers", "contact", "customerservice", "enquiries", "enquiry", "feedback", "finance", "hello",
    "help", "helpdesk", "hi", "hr", "info", "inquiries", "invoice", "invoices", "jobs", "kontakt",
    "legal", "mail", "mailbox", "marketing", "media", "no-reply", "noreply", "office", "orders",
    "post", "postmaster", "press", "privacy", "purchasing", "reception", "recruiting", "sales",
    "security", "service", "services", "shop", "support", "team", "webmaster",
))  # fmt: skip
IGNORED_VALUES = frozenset((
    "null", "undefined", "none", "nan", "nil", "n/a", "na", "unknown", "anonymous", "guest",
    "[object object]", "-1", "false", "true",
))  # fmt: skip
"""What a tool sends as an id when it has none: everybody would become one person."""
_PLACEHOLDERS = ("{{", "{%", "${", "*|", "%%", "[[")
"""How what a tool's template should have filled in begins: the same for everybody, too."""
DOTLESS_DOMAINS = frozenset(("gmail.com", "googlemail.com"))


class Policy(msgspec.Struct, frozen=True):
    """What names a person here; `region` (ISO 3166 alpha-2) reads phones without a country code."""

    fold_plus: bool = False
    fold_dots: bool = False
    keep_case: bool = False
    region: str | None = None
    shared_mailboxes: frozenset[str] = SHARED_MAILBOXES
    ignored_values: frozenset[str] = IGNORED_VALUES
    identities_max: int = 50
    automatic: bool = True


def is_strong(key: Key, policy: Policy) -> bool:
    """Say whether `key` alone names a person."""
    kind = key[0]
    return kind.startswith("external:") or (kind == "email" and not is_shared(key, policy))


def is_anchor(key: Key) -> bool:
    """Say whether a lead that owns `key` is known: it is no mere visitor, and no weak identity joins it.

    The address of a shared mailbox counts: `keys_of` drops it where a strong identity is beside it.
    """
    return key[0] == "email" or key[0].startswith("external:")


def is_shared(key: Key, policy: Policy) -> bool:
    """Say whether `key` is the address of a mailbox that several people read."""
    if key[0] != "email":
        return False
    local = key[1].partition("@")[0].partition("+")[0]
    return local.lower() in policy.shared_mailboxes


def keys_of(
    sent: Sequence[Key], data: Mapping[str, Any], policy: Policy
) -> tuple[Sequence[Key], list[str]]:
    """Give the keys that name somebody among the identities `sent` in `data`, and warnings.

    Strongest first. An address that the policy folds gives two keys, as sent and folded: so a changed
    policy still finds who was known before.
    """
    if len(sent) == 1 and sent[0][0] == "email" and not _folds(policy):
        return sent, []
    keys: list[Key] = []
    warnings: list[str] = []
    for kind, value in sent:
        if kind == "email":
            keys += _emails(value, data, policy)
        elif kind == "phone":
            number = e164(value, policy.region)
            if number is None:
                warnings.append("phone: not a number that can be dialled, kept as an attribute; "
                                + ("send it as +49 30 901820" if policy.region is None else
                                   f"read as one of {policy.region}"))  # fmt: skip
            else:
                keys.append(("phone", number))
        elif _says_none(value, policy):
            warnings.append(f"{spoken(kind)}: the value stands for no id, ignored")
        else:
            keys.append((kind, value))
    if any(is_strong(key, policy) for key in keys):
        keys = [key for key in keys if not is_shared(key, policy)]
    return tuple(dict.fromkeys(keys)), warnings


def _says_none(value: str, policy: Policy) -> bool:
    """Say whether an id stands for none: also one of zeros and dashes, as the nil UUID."""
    return (
        not value.strip("-0")
        or value.startswith(_PLACEHOLDERS)
        or value.lower() in policy.ignored_values
    )


def _folds(policy: Policy) -> bool:
    return policy.fold_plus or policy.fold_dots or policy.keep_case


def _emails(address: str, data: Mapping[str, Any], policy: Policy) -> list[Key]:
    if policy.keep_case and isinstance(said := data.get("email"), str):
        local, _, domain = said.strip().rpartition("@")
        address = f"{local}@{domain.lower()}"
    local, _, domain = address.rpartition("@")
    folded = local.partition("+")[0] if policy.fold_plus else local
    if policy.fold_dots and domain in DOTLESS_DOMAINS:
        folded = folded.replace(".", "")
    keys = [("email", address)]
    if folded and folded != local:
        keys.append(("email", f"{folded}@{domain}"))
    return keys


@lru_cache(maxsize=10_000)
def e164(text: str, region: str | None) -> str | None:
    """Give a phone number as E.164 (``+4930901820``), or None when it cannot be one (``555 555 5555``).

    Numbers without a country code are read as those of `region`.
    """
    try:
        number = phonenumbers.parse(text, region)
    except phonenumbers.NumberParseException:
        return None
    if not phonenumbers.is_possible_number(number) or len(set(str(number.national_number))) == 1:
        return None
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)


def spoken(kind: str) -> str:
    """Give an identity's kind as people say it."""
    if kind.startswith("external:"):
        return f"id in {kind[9:]}"
    return {"email": "e-mail", "anonymous": "anonymous id", LEAD_IDENTITY: "hand"}.get(kind, kind)

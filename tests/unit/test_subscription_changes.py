"""What is wrong with a subscription as it is wished, before anything is written."""

from __future__ import annotations

import pytest

from services.contracts.team import Team
from services.stage_service.encryption import Cipher
from services.stage_service.subscriptions.addresses import Allowed
from services.stage_service.subscriptions.changes import Draft, Terms, check


@pytest.mark.parametrize(
    "address", ["http://crm.example.com", "https://crm.example.com:6379", "https://10.0.0.1"]
)
def test_a_connectors_addresses_are_refused_as_a_webhooks(address: str) -> None:
    """Credentials go there."""
    terms = Terms(Cipher([b"k" * 32]), Allowed(), https_only=True, check_connector=lambda _: None)
    draft = Draft("crm", connector="hubspot", config={"base_url": address})
    wrong = check(draft, terms, {}, Team(()))
    assert wrong is not None
    assert wrong.field == "config.base_url"

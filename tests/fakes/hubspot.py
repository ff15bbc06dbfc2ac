"""HubSpot: contacts and owners of the CRM v3 API, OAuth, and the webhooks of an app.

After developers.hubspot.com (CRM contacts, owners, OAuth, usage limits, webhooks); the shape of the webhooks
is that of real deliveries. The lifecycle stage only moves forward: an earlier one is taken without a word and
does nothing, unless the property was cleared before.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs, unquote

from tests.fakes.crm import FakeCrm, RefusedError, Seen

PROPERTIES = {
    "email", "firstname", "lastname", "phone", "jobtitle", "company", "country", "lifecyclestage",
    "hubspot_owner_id",
}  # fmt: skip
STAGES = [
    "subscriber", "lead", "marketingqualifiedlead", "salesqualifiedlead", "opportunity", "customer",
    "evangelist", "other",
]  # fmt: skip
APP = 39522895
PORTAL = 48975575


def problem(status: int, category: str, message: str, **more: Any) -> RefusedError:
    """An error as HubSpot writes it."""
    body = {
        "status": "error", "message": message, "correlationId": "c-1", "category": category, **more
    }  # fmt: skip
    return RefusedError(status, body)


class FakeHubSpot(FakeCrm):
    """An account with one app."""

    def __init__(self, clock: Callable[[], datetime] | None = None) -> None:
        super().__init__(clock)
        self.tokens = {"pat-eu1-token"}
        self.refresh_tokens = {"refresh-1": ("client-1", "client-secret-1")}
        self.contacts: dict[str, dict[str, str]] = {}
        self.owners = {"41629779": "elena@example.com", "41629780": "jonas@example.com"}
        self.outbox: list[dict[str, Any]] = []
        """Webhook events that were not sent yet."""
        self._ids = itertools.count(508369434347)
        self._numbers = itertools.count(1)
        self._version = 0

    def version(self) -> int:
        """Give the number of changes."""
        return self._version

    def answer(self, seen: Seen) -> tuple[int, Any]:
        """Answer a request; raises RefusedError."""
        if (seen.method, seen.path) == ("POST", "/oauth/v1/token"):
            return self._token(seen)
        scheme, _, token = seen.headers.get("authorization", "").partition(" ")
        if scheme != "Bearer" or token not in self.tokens:
            category = "EXPIRED_AUTHENTICATION" if token else "INVALID_AUTHENTICATION"
            raise problem(401, category, "The OAuth token used to make this call expired")
        if seen.method != "GET" and seen.headers.get("content-type") != "application/json":
            raise RefusedError(415, {"status": "error", "message": "Unsupported media type"})
        if (seen.method, seen.path) == ("GET", "/crm/v3/owners"):
            return self._owners(seen)
        if (seen.method, seen.path) == ("POST", "/crm/v3/objects/contacts/batch/upsert"):
            return self._upsert(seen)
        found = re.fullmatch(r"/crm/v3/objects/contacts/([^/]+)", seen.path)
        if found and seen.method == "GET":
            return self._read(unquote(found[1]), seen)
        if found and seen.method == "PATCH":
            return self._update(unquote(found[1]), seen)
        raise problem(404, "OBJECT_NOT_FOUND", "resource not found")

    def _token(self, seen: Seen) -> tuple[int, Any]:
        if seen.headers.get("content-type") != "application/x-www-form-urlencoded":
            raise RefusedError(415, {"status": "BAD_CONTENT_TYPE"})
        form = {name: values[0] for name, values in parse_qs(str(seen.body)).items()}
        self.only(form, {"grant_type", "client_id", "client_secret", "refresh_token"}, "token")
        known = self.refresh_tokens.get(form.get("refresh_token", ""))
        if form.get("grant_type") != "refresh_token" or known != (
            form.get("client_id"), form.get("client_secret"),
        ):  # fmt: skip
            raise RefusedError(
                400, {"status": "BAD_REFRESH_TOKEN", "message": "missing or invalid"}
            )
        token = f"access-{next(self._numbers)}"
        self.tokens.add(token)
        return 200, {
            "access_token": token, "refresh_token": form["refresh_token"], "expires_in": 1800,
            "token_type": "bearer",
        }  # fmt: skip

    def _owners(self, seen: Seen) -> tuple[int, Any]:
        self.only(seen.query, {"email", "limit", "after", "archived"}, "owners")
        found = [
            {"id": id, "email": email, "type": "PERSON", "userId": int(id) + 7, "archived": False,
             "firstName": "", "lastName": "", "createdAt": "2025-01-01T00:00:00.000Z",
             "updatedAt": "2025-01-01T00:00:00.000Z"}
            for id, email in self.owners.items() if email == seen.query.get("email", email)
        ]  # fmt: skip
        return 200, {"results": found[: int(seen.query.get("limit", "100"))]}

    def _find(self, id: str, by: str | None) -> str:
        if by is not None and by != "email":
            raise problem(400, "VALIDATION_ERROR", "not a unique property")
        for known, contact in self.contacts.items():
            if known == id if by is None else contact["email"].lower() == id.lower():
                return known
        raise problem(404, "OBJECT_NOT_FOUND", "resource not found")

    def _read(self, id: str, seen: Seen) -> tuple[int, Any]:
        known = {"properties", "idProperty", "archived", "associations", "propertiesWithHistory"}
        self.only(seen.query, known, "contact")
        wanted = seen.query.get("properties", "").split(",")
        self.only(dict.fromkeys(wanted), PROPERTIES, "properties")
        found = self._find(id, seen.query.get("idProperty"))
        return 200, self._shown(found, wanted)

    def _shown(self, id: str, wanted: list[str]) -> dict[str, Any]:
        contact = self.contacts[id]
        return {
            "id": id, "properties": {"hs_object_id": id} | {n: contact.get(n) for n in wanted},
            "createdAt": "2025-01-01T00:00:00.000Z", "updatedAt": "2025-01-01T00:00:00.000Z",
            "archived": False, "url": f"https://app.hubspot.com/contacts/{PORTAL}/record/0-1/{id}",
        }  # fmt: skip

    def _upsert(self, seen: Seen) -> tuple[int, Any]:
        inputs = seen.body.get("inputs") if isinstance(seen.body, dict) else None
        if (
            not isinstance(inputs, list)
            or not 1 <= len(inputs) <= 100
            or set(seen.body) != {"inputs"}
        ):
            raise problem(400, "VALIDATION_ERROR", "Invalid input JSON")
        results: list[dict[str, Any]] = []
        for each in inputs:
            if not {"id", "properties"} <= set(each) <= {"id", "properties", "idProperty",
                                                         "objectWriteTraceId"}:  # fmt: skip
                raise problem(400, "VALIDATION_ERROR", "Invalid input JSON")
            try:
                id, is_new = self._find(each["id"], each.get("idProperty")), False
            except RefusedError:
                id, is_new = self._create({"email": each["id"]} | each["properties"], True), True
            if not is_new:
                self._change(id, each["properties"], ours=True)
            results.append(self._shown(id, list(each["properties"])) | {"new": is_new})
        return 200, {
            "status": "COMPLETE", "results": results, "startedAt": "2025-01-01T00:00:00.000Z",
            "completedAt": "2025-01-01T00:00:00.000Z",
        }  # fmt: skip

    def _update(self, id: str, seen: Seen) -> tuple[int, Any]:
        if not isinstance(seen.body, dict) or set(seen.body) != {"properties"}:
            raise problem(400, "VALIDATION_ERROR", "Invalid input JSON")
        found = self._find(id, seen.query.get("idProperty"))
        self._change(found, seen.body["properties"], ours=True)
        return 200, self._shown(found, list(seen.body["properties"]))

    def _check(self, properties: Any, but: str | None) -> None:
        if not isinstance(properties, dict) or not properties:
            raise problem(400, "VALIDATION_ERROR", "No properties found to update")
        for name, value in properties.items():
            error = None
            if name not in PROPERTIES:
                error = "PROPERTY_DOESNT_EXIST"
            elif not isinstance(value, str):
                error = "INVALID_TYPE"
            elif name == "lifecyclestage" and value and value not in STAGES:
                error = "INVALID_OPTION"
            elif name == "hubspot_owner_id" and value and value not in self.owners:
                error = "INVALID_OWNER_ID"
            elif name == "email" and not re.fullmatch(r"[^@\s]+@[^@\s]+", value):
                error = "INVALID_EMAIL"
            if error:
                raise problem(
                    400,
                    "VALIDATION_ERROR",
                    f"Property values were not valid: {name}",
                    errors=[{"message": f"{name} is not valid", "code": error}],
                )
        email = properties.get("email", "").lower()
        for id, contact in self.contacts.items():
            if email and id != but and contact["email"].lower() == email:
                raise problem(409, "CONFLICT", f"Contact already exists. Existing ID: {id}")

    def _create(self, properties: dict[str, str], ours: bool) -> str:
        self._check(properties, None)
        id = str(next(self._ids))
        self.contacts[id] = {}
        self._version += 1
        self._tell(id, "contact.creation", ours, changeFlag="CREATED")
        self._change(id, {"lifecyclestage": "lead"} | properties, ours)
        return id

    def _change(self, id: str, properties: dict[str, str], ours: bool) -> None:
        self._check(properties, id)
        contact = self.contacts[id]
        for name, value in properties.items():
            before = contact.get(name, "")
            is_stage = name == "lifecyclestage" and value and before in STAGES
            if value == before or (is_stage and STAGES.index(value) < STAGES.index(before)):
                continue
            contact[name] = value
            self._version += 1
            self._tell(id, "contact.propertyChange", ours, propertyName=name, propertyValue=value)

    def _tell(self, id: str, type: str, ours: bool, **more: Any) -> None:
        number = next(self._numbers)
        self.outbox.append({
            "attemptNumber": 0, "eventId": 60775291 + number, "portalId": PORTAL, "appId": APP,
            "changeSource": "INTEGRATION" if ours else "CRM_UI",
            "sourceId": str(APP) if ours else "userId:882761034", "subscriptionType": type,
            "subscriptionId": 6527595, "occurredAt": int(self.clock().timestamp() * 1000),
            "objectId": int(id),
            **more,
        })  # fmt: skip

    def by_hand(self, id: str | None, **properties: str) -> str:
        """What somebody does in HubSpot's own pages: changes a contact, or makes one (`id` None)."""
        if id is None:
            return self._create(properties, False)
        self._change(id, properties, False)
        return id

    def delete(self, id: str) -> None:
        """Somebody deletes a contact."""
        del self.contacts[id]
        self._version += 1
        self._tell(id, "contact.deletion", False, changeFlag="DELETED")

    def sent(self) -> list[dict[str, Any]]:
        """Take the webhook events that wait: one delivery."""
        events, self.outbox = self.outbox, []
        return events

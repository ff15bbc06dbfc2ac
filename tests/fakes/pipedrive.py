"""Pipedrive: persons and deals of version 2, users of version 1, and webhooks of version 2.

After developers.pipedrive.com; the shape of the webhooks is that of real deliveries. A new person is found by
the search only after a while, and two may have one address.
"""

from __future__ import annotations

import copy
import itertools
import re
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.fakes.crm import FakeCrm, RefusedError, Seen

PERSON = {
    "name": str, "owner_id": int, "org_id": int, "emails": list, "phones": list, "visible_to": int,
    "label_ids": list, "marketing_status": str, "custom_fields": dict,
}  # fmt: skip
DEAL = {
    "title": str, "owner_id": int, "person_id": int, "org_id": int, "pipeline_id": int, "stage_id": int,
    "value": (int, float), "currency": str, "status": str, "expected_close_date": str, "lost_reason": str,
    "is_deleted": bool, "is_archived": bool, "custom_fields": dict,
}  # fmt: skip
API_USER = 12345678


def refused(status: int, error: str) -> RefusedError:
    """An error as Pipedrive writes it."""
    return RefusedError(status, {"success": False, "error": error, "code": "ERR", "error_info": ""})


class FakePipedrive(FakeCrm):
    """An account with one pipeline of five stages."""

    def __init__(self, clock: Callable[[], datetime] | None = None) -> None:
        super().__init__(clock)
        self.tokens = {"a-token-of-40-characters"}
        self.users = {12345678: "api@example.com", 21: "elena@example.com", 22: "jonas@example.com"}
        self.persons: dict[int, dict[str, Any]] = {}
        self.deals: dict[int, dict[str, Any]] = {}
        self.unindexed: set[int] = set()
        """Persons that the search does not know yet."""
        self.index_at_once = True
        self.outbox: list[dict[str, Any]] = []
        self._ids = itertools.count(101)
        self._version = 0
        self._told_at = datetime.min.replace(tzinfo=UTC)

    def version(self) -> int:
        """Give the number of changes."""
        return self._version

    def answer(self, seen: Seen) -> tuple[int, Any]:
        """Answer a request; raises RefusedError."""
        if seen.headers.get("x-api-token") not in self.tokens:
            raise refused(401, "unauthorized access")
        if (
            seen.method in ("POST", "PATCH")
            and seen.headers.get("content-type") != "application/json"
        ):
            raise refused(400, "Request body is not JSON")
        for method, path, answer in (
            ("GET", r"/api/v1/users/find", self._users),
            ("GET", r"/api/v2/persons/search", self._search),
            ("GET", r"/api/v2/(persons|deals)/(\d+)", self._read),
            ("GET", r"/api/v2/deals", self._list),
            ("POST", r"/api/v2/(persons|deals)", self._add),
            ("PATCH", r"/api/v2/(persons|deals)/(\d+)", self._patch),
        ):
            found = re.fullmatch(path, seen.path)
            if method == seen.method and found:
                return answer(seen, *found.groups())
        raise refused(404, "Not found")

    def _users(self, seen: Seen) -> tuple[int, Any]:
        self.only(seen.query, {"term", "search_by_email"}, "users/find")
        if not seen.query.get("term"):
            raise refused(400, "term is required")
        found = [
            {"id": id, "name": email, "email": email, "active_flag": True}
            for id, email in self.users.items()
            if seen.query.get("search_by_email") == "1" and email == seen.query["term"]
        ]  # fmt: skip
        return 200, {"success": True, "data": found or None}

    def _search(self, seen: Seen) -> tuple[int, Any]:
        known = {
            "term",
            "fields",
            "exact_match",
            "organization_id",
            "include_fields",
            "limit",
            "cursor",
        }
        self.only(seen.query, known, "search")
        term = seen.query.get("term", "").lower()
        if len(term) < 2 or seen.query.get("fields") not in ("email", "name", "phone"):
            raise refused(400, "term is too short")
        items = [
            {"result_score": 1, "item": {"id": id, "type": "person", "name": person["name"],
             "emails": [e["value"] for e in person["emails"]]}}
            for id, person in self.persons.items()
            if id not in self.unindexed and not person["is_deleted"]
            and any(e["value"].lower() == term for e in person["emails"])
        ]  # fmt: skip
        return 200, {
            "success": True,
            "data": {"items": items},
            "additional_data": {"next_cursor": None},
        }

    def _kind(self, kind: str) -> dict[int, dict[str, Any]]:
        return self.persons if kind == "persons" else self.deals

    def _read(self, seen: Seen, kind: str, id: str) -> tuple[int, Any]:
        found = self._kind(kind).get(int(id))
        if found is None:
            raise refused(404, f"{kind} not found")
        return 200, {"success": True, "data": copy.deepcopy(found)}

    def _list(self, seen: Seen) -> tuple[int, Any]:
        self.only(
            seen.query,
            {"person_id", "status", "sort_by", "sort_direction", "limit", "owner_id", "stage_id"},
            "deals",
        )
        assert re.fullmatch(r"\d+", seen.query["person_id"])
        found = [
            copy.deepcopy(deal) for deal in self.deals.values()
            if deal["person_id"] == int(seen.query["person_id"]) and deal["status"] == seen.query["status"]
            and not deal["is_deleted"]
        ]  # fmt: skip
        found.sort(key=lambda d: d["update_time"], reverse=seen.query["sort_direction"] == "desc")
        limited = found[: int(seen.query.get("limit", "100"))]
        return 200, {"success": True, "data": limited, "additional_data": {"next_cursor": None}}

    def _check(self, kind: str, body: Any) -> dict[str, Any]:
        if not isinstance(body, dict) or not body:
            raise refused(400, "Validation failed: body")
        types: dict[str, Any] = PERSON if kind == "persons" else DEAL
        for name, value in body.items():
            if name not in types or not isinstance(value, types[name]) or isinstance(value, bool):
                raise refused(400, f"Validation failed: {name}")
            if name in ("emails", "phones") and not all(
                {"value"} <= set(e) <= {"value", "primary", "label"} for e in value
            ):
                raise refused(400, f"Validation failed: {name}")
            if name == "owner_id" and value not in self.users:
                raise refused(400, "Validation failed: owner_id")
            if name == "stage_id" and value not in range(1, 6):
                raise refused(400, "Validation failed: stage_id")
            if name == "status" and value not in ("open", "won", "lost"):
                raise refused(400, "Validation failed: status")
        return body

    def _add(self, seen: Seen, kind: str) -> tuple[int, Any]:
        body = self._check(kind, seen.body)
        if ("name" if kind == "persons" else "title") not in body:
            raise refused(400, "Validation failed: name is required")
        return 201, {"success": True, "data": self.add(kind, body, ours=True)}

    def _patch(self, seen: Seen, kind: str, id: str) -> tuple[int, Any]:
        found = self._kind(kind).get(int(id))
        if found is None or found["is_deleted"]:
            raise refused(404, f"{kind} not found")
        self.change(kind, int(id), self._check(kind, seen.body), ours=True)
        return 200, {"success": True, "data": copy.deepcopy(found)}

    def add(self, kind: str, fields: dict[str, Any], *, ours: bool = False) -> dict[str, Any]:
        """Make a person or deal."""
        id = next(self._ids)
        now = self._now()
        made: dict[str, Any] = {"id": id, "add_time": now, "update_time": now, "is_deleted": False,
                                "owner_id": API_USER, "custom_fields": {}}  # fmt: skip
        if kind == "persons":
            first, _, last = fields.get("name", "").partition(" ")
            made |= {"emails": [], "phones": [], "org_id": None, "label_ids": [], "first_name": first,
                     "last_name": last or None}  # fmt: skip
        else:
            made |= {"person_id": None, "status": "open", "stage_id": 1, "pipeline_id": 1, "value": 0,
                     "currency": "EUR", "lost_reason": None, "won_time": None, "lost_time": None,
                     "stage_change_time": None, "probability": None}  # fmt: skip
        self._kind(kind)[id] = made | fields
        if kind == "persons" and not self.index_at_once:
            self.unindexed.add(id)
        self._version += 1
        self._tell(kind, "create", id, None, ours)
        return copy.deepcopy(self._kind(kind)[id])

    def change(self, kind: str, id: int, fields: dict[str, Any], *, ours: bool = False) -> None:
        """Change a person or deal, and what Pipedrive changes along with it."""
        found = self._kind(kind)[id]
        previous = {n: found.get(n) for n, v in fields.items() if found.get(n) != v}
        if not previous:
            return
        previous["update_time"] = found["update_time"]
        found |= fields | {"update_time": self._now()}
        if "stage_id" in previous:
            previous["stage_change_time"] = found["stage_change_time"]
            found["stage_change_time"] = self._now()
        if previous.get("status") and found["status"] in ("won", "lost"):
            name = f"{found['status']}_time"
            previous[name], found[name] = found[name], self._now()
        self._version += 1
        self._tell(kind, "change", id, previous, ours)

    def _now(self) -> str:
        """Give the time, in milliseconds as Pipedrive does; no two changes are at one moment."""
        self._told_at = max(self._told_at + timedelta(milliseconds=1), self.clock())
        return self._told_at.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def _tell(
        self, kind: str, action: str, id: int, previous: dict[str, Any] | None, ours: bool
    ) -> None:
        user = str(API_USER if ours else 21)
        self.outbox.append({
            "meta": {
                "action": action, "entity": kind[:-1], "company_id": "1", "entity_id": str(id),
                "correlation_id": str(uuid.uuid4()), "id": str(uuid.uuid4()), "is_bulk_edit": False,
                "timestamp": self._now(), "type": "application", "user_id": user, "version": "2.0",
                "webhook_id": "12345678", "webhook_owner_id": user, "attempt": 1,
                "change_source": "api" if ours else "app", "permitted_user_ids": [user],
                "host": "pd.pipedrive.com",
            },
            "data": copy.deepcopy(self._kind(kind)[id]), "previous": previous,
        })  # fmt: skip

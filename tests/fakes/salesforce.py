"""Salesforce: Leads by REST (composite, query, upsert by external id, update), OAuth, change events.

After developer.salesforce.com (REST API guide, OAuth flows, Change Data Capture). Of SOQL it reads the shape
that `SELECT fields FROM object WHERE a = 'x' OR (b = 'y' AND c = null) ORDER BY ... LIMIT n` has.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tests.fakes.crm import FakeCrm, RefusedError, Seen

FIELDS = {
    "Id", "Baton_Lead_Id__c", "FirstName", "LastName", "Email", "Phone", "Title", "Company", "Country",
    "Status", "OwnerId", "IsConverted", "CreatedDate",
}  # fmt: skip
STATUSES = {
    "Open - Not Contacted", "Working - Contacted", "Closed - Converted", "Closed - Not Converted",
}  # fmt: skip
API = "/services/data/v62.0"
SYSTEM_USER = "005000000000001AAA"


def refused(
    status: int, code: str, message: str = "", fields: list[str] | None = None
) -> RefusedError:
    """An error as Salesforce writes it."""
    error: dict[str, Any] = {"message": message or code, "errorCode": code}
    return RefusedError(status, [error | ({"fields": fields} if fields is not None else {})])


def full_id(prefix: str, number: int) -> str:
    """An id of 18 characters: the last 3 tell which of the first 15 are upper-case."""
    short = f"{prefix}{number:09}"
    suffix = ""
    for part in (short[:5], short[5:10], short[10:]):
        bits = sum(1 << i for i, c in enumerate(part) if c.isupper())
        suffix += "ABCDEFGHIJKLMNOPQRSTUVWXYZ012345"[bits]
    return short + suffix


class FakeSalesforce(FakeCrm):
    """An organisation with a connected app for each flow."""

    def __init__(self, clock: Callable[[], datetime] | None = None) -> None:
        super().__init__(clock)
        self.tokens: set[str] = set()
        self.public_key: rsa.RSAPublicKey | None = None
        self.leads: dict[str, dict[str, Any]] = {}
        self.users = {
            "005000000000021AAA": "elena@example.com",
            "005000000000022AAA": "jonas@example.com",
        }
        self.outbox: list[dict[str, Any]] = []
        self._numbers = itertools.count(1)
        self._version = 0

    def version(self) -> int:
        """Give the number of changes."""
        return self._version

    def is_reading(self, seen: Seen) -> bool:
        """Whether a request only reads."""
        return super().is_reading(seen) or seen.path.endswith("/composite")

    def answer(self, seen: Seen) -> tuple[int, Any]:
        """Answer a request; raises RefusedError."""
        if (seen.method, seen.path) == ("POST", "/services/oauth2/token"):
            return self._token(seen)
        scheme, _, token = seen.headers.get("authorization", "").partition(" ")
        if scheme != "Bearer" or token not in self.tokens:
            raise refused(401, "INVALID_SESSION_ID", "Session expired or invalid")
        if seen.method != "GET" and seen.headers.get("content-type") != "application/json":
            raise refused(415, "UNSUPPORTED_MEDIA_TYPE")
        if (seen.method, seen.path) == ("POST", f"{API}/composite"):
            return self._composite(seen)
        found = re.fullmatch(rf"{API}/sobjects/Lead/Baton_Lead_Id__c/([^/]+)", seen.path)
        if found and seen.method == "PATCH":
            return self._upsert(unquote(found[1]), seen)
        found = re.fullmatch(rf"{API}/sobjects/Lead/(\w+)", seen.path)
        if found and seen.method == "PATCH":
            id = self._by_id(found[1])
            self._change(id, self._fields(seen.body), seen)
            return 204, None
        raise refused(404, "NOT_FOUND", "The requested resource does not exist")

    def _token(self, seen: Seen) -> tuple[int, Any]:
        form = {name: values[0] for name, values in parse_qs(str(seen.body)).items()}
        grant = form.get("grant_type", "")
        if grant == "urn:ietf:params:oauth:grant-type:jwt-bearer":
            self.only(form, {"grant_type", "assertion"}, "token")
            self._assertion(form.get("assertion", ""))
        elif grant == "client_credentials":
            if (form.get("client_id"), form.get("client_secret")) != ("consumer", "secret"):
                raise RefusedError(400, {"error": "invalid_client", "error_description": "invalid"})
        else:
            raise RefusedError(400, {"error": "unsupported_grant_type"})
        token = f"00D!{next(self._numbers)}"
        self.tokens.add(token)
        return 200, {
            "access_token": token, "instance_url": self.url, "token_type": "Bearer", "scope": "api",
            "id": f"{self.url}/id/00D/{SYSTEM_USER}", "issued_at": str(int(self.clock().timestamp() * 1000)),
        }  # fmt: skip

    def _assertion(self, assertion: str) -> None:
        signed, _, signature = assertion.rpartition(".")
        parts = [json.loads(base64.urlsafe_b64decode(p + "==")) for p in signed.split(".")]
        assert self.public_key is not None
        self.public_key.verify(
            base64.urlsafe_b64decode(signature + "=="), signed.encode(), padding.PKCS1v15(),
            hashes.SHA256(),
        )  # fmt: skip
        head, claims = parts
        assert head["alg"] == "RS256"
        if claims["aud"] != "https://login.salesforce.com" or claims["iss"] != "consumer":
            raise RefusedError(
                400, {"error": "invalid_grant", "error_description": "audience is invalid"}
            )
        if (
            not 0 < claims["exp"] - self.clock().timestamp() <= 300
            or claims["sub"] != "api@example.com"
        ):
            raise RefusedError(400, {"error": "invalid_grant", "error_description": "expired"})

    def _composite(self, seen: Seen) -> tuple[int, Any]:
        self.only(seen.body, {"allOrNone", "compositeRequest", "collateSubrequests"}, "composite")
        asked = seen.body["compositeRequest"]
        if not 1 <= len(asked) <= 25:
            raise refused(400, "PROCESSING_HALTED")
        answers: list[dict[str, Any]] = []
        for each in asked:
            self.only(each, {"method", "url", "referenceId", "body", "httpHeaders"}, "subrequest")
            url = urlsplit(each["url"])
            assert (each["method"], url.path) == ("GET", f"{API}/query")
            try:
                status, body = 200, self._query(parse_qs(url.query)["q"][0])
            except RefusedError as error:
                status, body = error.status, error.body
            answers.append({"body": body, "httpHeaders": {}, "httpStatusCode": status,
                            "referenceId": each["referenceId"]})  # fmt: skip
        return 200, {"compositeResponse": answers}

    def _query(self, soql: str) -> Any:
        found = re.fullmatch(
            r"SELECT (?P<fields>[\w, ]+) FROM (?P<object>\w+) WHERE (?P<where>.+?)"
            r"(?: ORDER BY (?P<order>[\w, ]+?))?(?: LIMIT (?P<limit>\d+))?", soql,
        )  # fmt: skip
        if found is None:
            raise refused(400, "MALFORMED_QUERY", "unexpected token")
        fields = [f.strip() for f in found["fields"].split(",")]
        table: dict[str, dict[str, Any]] = self.leads
        if found["object"] == "User":
            table = {id: {"Id": id, "Email": e, "IsActive": True} for id, e in self.users.items()}
        elif set(fields) - FIELDS:
            raise refused(400, "INVALID_FIELD", f"No such column: {set(fields) - FIELDS}")
        rows = [row for row in table.values() if self._holds(found["where"], row)]
        rows.sort(key=lambda r: r.get("Baton_Lead_Id__c") is None)
        records = [
            {"attributes": {"type": found["object"], "url": f"{API}/sobjects/x/{row['Id']}"}}
            | {name: row.get(name) for name in fields}
            for row in rows[: int(found["limit"] or 2000)]
        ]
        return {"totalSize": len(records), "done": True, "records": records}

    def _holds(self, where: str, row: dict[str, Any]) -> bool:
        texts: list[str] = []

        def masked(found: re.Match[str]) -> str:
            texts.append(re.sub(r"\\(.)", r"\1", found[0][1:-1]))
            return f"#{len(texts) - 1}"

        def one(text: str) -> bool:
            found = re.fullmatch(r"(\w+) = (#\d+|null|true|false)", text)
            if found is None:
                raise refused(400, "MALFORMED_QUERY", text)
            have = row.get(found[1])
            if found[2].startswith("#"):
                value = texts[int(found[2][1:])]
                if found[1] == "Id":
                    return str(have)[:15] == value[:15]
                return str(have or "").lower() == value.lower()
            return have == {"null": None, "true": True, "false": False}[found[2]]

        plain = re.sub(r"'(?:[^'\\]|\\.)*'", masked, where)
        return any(
            all(one(part) for part in clause.strip("()").split(" AND "))
            for clause in plain.split(" OR ")
        )

    def _by_id(self, id: str) -> str:
        for known in self.leads:
            if known[:15] == id[:15]:
                return known
        raise refused(
            404, "NOT_FOUND", "Provided external ID field does not exist or is not accessible"
        )

    def _fields(self, body: Any) -> dict[str, Any]:
        if not isinstance(body, dict):
            raise refused(400, "JSON_PARSER_ERROR")
        for name, value in body.items():
            if name not in FIELDS - {"Id", "IsConverted", "CreatedDate"}:
                raise refused(
                    400, "INVALID_FIELD", f"No such column '{name}' on sobject of type Lead"
                )
            if not isinstance(value, str):
                raise refused(400, "JSON_PARSER_ERROR", f"Cannot deserialize {name}")
            if name == "Status" and value not in STATUSES - {"Closed - Converted"}:
                raise refused(400, "INVALID_OR_NULL_FOR_RESTRICTED_PICKLIST", fields=["Status"])
            if name == "OwnerId" and value[:15] not in {u[:15] for u in self.users}:
                raise refused(400, "INVALID_CROSS_REFERENCE_KEY", fields=["OwnerId"])
        return body

    def _upsert(self, external: str, seen: Seen) -> tuple[int, Any]:
        fields = self._fields(seen.body)
        if "Baton_Lead_Id__c" in fields or "Id" in fields:
            raise refused(400, "INVALID_FIELD", "The external id must not be in the body")
        found = [id for id, row in self.leads.items() if row.get("Baton_Lead_Id__c") == external]
        if found:
            self._change(found[0], fields, seen)
            return 200, {"id": found[0], "success": True, "errors": [], "created": False}
        id = self.add({"Baton_Lead_Id__c": external} | fields, seen)
        return 201, {"id": id, "success": True, "errors": [], "created": True}

    def add(self, fields: dict[str, Any], seen: Seen | None = None) -> str:
        """Make a Lead; without `seen`, somebody does by hand."""
        for name in ("LastName", "Company"):
            if not fields.get(name):
                raise refused(400, "REQUIRED_FIELD_MISSING", f"Required: {name}", [name])
        id = full_id("00Q5e0", next(self._numbers))
        made = {"Id": id, "IsConverted": False, "Status": "Open - Not Contacted",
                "OwnerId": SYSTEM_USER, "CreatedDate": "2026-01-01T00:00:00.000+0000"}  # fmt: skip
        self.leads[id] = made | fields
        self._version += 1
        self._tell(id, "CREATE", self.leads[id], seen)
        return id

    def change(self, id: str, **fields: Any) -> None:
        """Somebody changes a Lead by hand."""
        self._change(id, fields, None)

    def _change(self, id: str, fields: dict[str, Any], seen: Seen | None) -> None:
        row = self.leads[id]
        if row["IsConverted"] and seen is not None:
            raise refused(400, "CANNOT_UPDATE_CONVERTED_LEAD", "cannot reference converted lead")
        changed = {n: v for n, v in fields.items() if row.get(n) != v}
        if changed:
            row |= changed
            self._version += 1
            self._tell(id, "UPDATE", changed, seen)

    def _tell(self, id: str, type: str, fields: dict[str, Any], seen: Seen | None) -> None:
        number = next(self._numbers)
        origin = "com/salesforce/api/rest/62.0"
        options = (seen.headers.get("sforce-call-options") or "") if seen else ""
        if options.startswith("client="):
            origin += f";{options}"
        told = {
            n: v
            for n, v in fields.items()
            if n not in ("Id", "IsConverted", "FirstName", "LastName")
        }
        names = {n: fields[n] for n in ("FirstName", "LastName") if n in fields}
        header = {
            "entityName": "Lead", "recordIds": [id], "changeType": type,
            "changeOrigin": origin if seen else "",
            "transactionKey": f"0003c6{number:04}", "sequenceNumber": 1,
            "commitTimestamp": int(self.clock().timestamp() * 1000), "commitNumber": 10589488868000 + number,
            "commitUser": SYSTEM_USER,
        }  # fmt: skip
        self.outbox.append(
            {"ChangeEventHeader": header, **told, **({"Name": names} if names else {}),
             "LastModifiedDate": "2026-01-01T00:00:00.000Z"}
        )  # fmt: skip

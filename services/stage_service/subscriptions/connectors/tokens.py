"""How a connector's requests are authenticated: a credential as it is, or an access token of OAuth 2.0.

An access token is kept until it expires, or the API refuses it; then it is got anew, once for all who wait.
The grants are those of RFC 6749 (4.4, 6) and RFC 7523 (2.1, an assertion signed RS256).
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, cast
from urllib.parse import urlencode

import msgspec
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from services.stage_service.subscriptions.connectors.calls import Calls
from services.stage_service.subscriptions.connectors.connector import Auth

EARLY = timedelta(seconds=60)
"""A token is got anew so long before it expires: a request must not meet the moment."""
ASSERTION_S = 180
_JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"


class NoTokenError(Exception):
    """No access token was got; `is_refused`: the credentials are wrong. The text has no secrets."""

    def __init__(self, reason: str, *, is_refused: bool = False) -> None:
        super().__init__(reason)
        self.is_refused = is_refused


class Shown(msgspec.Struct, frozen=True):
    """What authenticates: `headers`, and a `query` of each address. `base`: where the API is, if told."""

    headers: dict[str, str]
    query: str = ""
    base: str | None = None
    token: str | None = None


class Tokens:
    """Authenticates the requests of one subscription."""

    def __init__(
        self, auth: Auth, credentials: Mapping[str, str], config: Mapping[str, Any], calls: Calls
    ) -> None:
        self._auth = auth
        self._credentials = credentials
        self._config = config
        self._calls = calls
        self._got: Shown | None = None
        self._until: datetime | None = None
        self._one_at_a_time = asyncio.Lock()

    @property
    def can_be_renewed(self) -> bool:
        """Say whether another try may get along where a credential was refused."""
        return self._auth.kind == "oauth2"

    async def shown(self, now: datetime, refused: str | None = None) -> Shown:
        """Give what to show; `refused` is a token that the API did not take.

        Raises NoTokenError, NoAnswerError.
        """
        if self._auth.kind != "oauth2":
            return self._as_it_is()
        async with self._one_at_a_time:
            got = self._got
            is_fresh = self._until is None or now < self._until
            if got is not None and is_fresh and got.token != refused:
                return got
            self._got = None
            self._got = await self._get(now)
            return self._got

    def _as_it_is(self) -> Shown:
        secret = self._credentials[self._auth.credentials[0]]
        if self._auth.kind == "query":
            return Shown({}, urlencode({self._auth.name: secret}))
        is_bearer = self._auth.kind == "bearer"
        return Shown({self._auth.name: f"Bearer {secret}" if is_bearer else secret})

    async def _get(self, now: datetime) -> Shown:
        scope = {"config": self._config}
        url = self._auth.token_url.render(scope) if self._auth.token_url is not None else None
        if not url:
            raise NoTokenError("the address for tokens has no value: see the subscription's config")
        headers = {
            "content-type": "application/x-www-form-urlencoded", "accept": "application/json",
        }  # fmt: skip
        answer = await self._calls.send("POST", url, headers, urlencode(self._form(now)).encode())
        told = cast("dict[str, Any]", answer.body) if isinstance(answer.body, dict) else {}
        token = told.get("access_token")
        if answer.status != 200 or not isinstance(token, str):
            error = told.get("error") or told.get("status")
            said = f" ({error})" if isinstance(error, str) and error.isascii() else ""
            raise NoTokenError(
                f"no access token: answered {answer.status}{said[:60]}",
                is_refused=400 <= answer.status < 500 and answer.status != 429,
            )
        seconds = told.get("expires_in")
        self._until = None
        if isinstance(seconds, int | float) and not isinstance(seconds, bool):
            self._until = (
                now + timedelta(seconds=seconds) - min(EARLY, timedelta(seconds=seconds / 2))
            )
        base = told.get(self._auth.base_from or "")
        return Shown(
            {"authorization": f"Bearer {token}"}, "", base if isinstance(base, str) else None, token
        )

    def _form(self, now: datetime) -> dict[str, str]:
        known = self._credentials
        form: dict[str, str] = {}
        if self._auth.grant == "jwt_bearer":
            form = {"grant_type": _JWT_BEARER, "assertion": self._assertion(now)}
        elif self._auth.grant == "refresh_token":
            form = {"grant_type": "refresh_token", "refresh_token": known["refresh_token"]}
        else:
            form = {"grant_type": "client_credentials"}
        if self._auth.grant != "jwt_bearer":
            form |= {"client_id": known["client_id"], "client_secret": known["client_secret"]}
        if self._auth.scope is not None:
            form["scope"] = self._auth.scope
        return form

    def _assertion(self, now: datetime) -> str:
        """Sign who we are (RFC 7519, RFC 7523): three minutes are the longest that Salesforce takes."""
        audience = (
            self._auth.audience.render({"config": self._config}) if self._auth.audience else ""
        )
        claims = {
            "iss": self._credentials["client_id"], "sub": self._credentials["username"],
            "aud": audience, "exp": int(now.timestamp()) + ASSERTION_S,
        }  # fmt: skip
        signed = f"{_part({'alg': 'RS256', 'typ': 'JWT'})}.{_part(claims)}"
        try:
            pem = self._credentials["private_key"].encode()
            key = cast("Any", serialization.load_pem_private_key(pem, None))
        except (ValueError, TypeError) as error:
            raise NoTokenError(
                "the credential 'private_key' is no key in PEM without a password", is_refused=True
            ) from error
        if not isinstance(key, rsa.RSAPrivateKey):
            raise NoTokenError("the credential 'private_key' is no RSA key", is_refused=True)
        signature = key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{_base64(signature)}"


def _part(value: object) -> str:
    return _base64(json.dumps(value, separators=(",", ":")).encode())


def _base64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()

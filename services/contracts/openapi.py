"""What both OpenAPI documents say alike: problems, scopes, and the shape of each answer.

Routes answer JSON that is written without a model, for speed. What it looks like is said beside them, by
operation id: `Answer`. `complete` puts that, the problems that every route can answer, and the scope that
the key needs, into the document that the framework made. A route that describes its answer itself is left
as it is. A test asks that no operation is without.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, cast

import msgspec
from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import iter_route_contexts

from services.contracts.problems import DOCS, PROBLEM_CONTENT_TYPE

JSON = "application/json"
_METHODS = ("get", "put", "post", "delete", "patch", "head", "options")
_REF = "#/components/schemas/{name}"


class Problem(msgspec.Struct, frozen=True):
    """What went wrong (RFC 9457). `code` is stable and ends `type`, which leads to its remedy."""

    type: Annotated[
        str,
        msgspec.Meta(
            extra_json_schema={"format": "uri"}, examples=[DOCS + "invalid-request"],
            description="leads to a heading of docs/errors.md, which has one for every code",
        ),
    ]  # fmt: skip
    title: Annotated[str, msgspec.Meta(examples=["The request cannot be understood"])]
    status: Annotated[int, msgspec.Meta(ge=400, le=599)]
    detail: str
    code: Annotated[str, msgspec.Meta(pattern="^[a-z0-9-]+$", examples=["invalid-request"])]
    field: str | msgspec.UnsetType = msgspec.UNSET
    value: str | msgspec.UnsetType | None = msgspec.UNSET
    remedy: str | msgspec.UnsetType | None = msgspec.UNSET


class Answer(msgspec.Struct, frozen=True):
    """What an operation answers when it went well, and with which problems of its own.

    `body` is a type that msgspec knows, or several of which it is one (None: no body); `many`: a page of
    them, ``items`` and ``next_cursor``, with `more` members. `problems` are those that not every operation of
    its kind has. `also` are other statuses: (status, description, type or None).
    """

    body: Any = None
    many: bool = False
    status: int = 200
    media: str = JSON
    problems: tuple[int, ...] = ()
    also: tuple[tuple[int, str, Any], ...] = ()
    more: Mapping[str, Any] = {}
    sent: Any = None
    """An example of the request's body."""


_HEADERS: dict[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": {"schema": {"type": "string"}, "description": "how to authenticate"}},
    429: {
        "Retry-After": {"schema": {"type": "integer"}, "description": "seconds"},
        "RateLimit": {"schema": {"type": "string"}, "description": "what is left"},
        "RateLimit-Policy": {"schema": {"type": "string"}, "description": "the quota"},
    },
    503: {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}},
}
_SAID = {
    400: "The request cannot be read",
    401: "No valid API key",
    403: "The key lacks the scope",
    404: "There is no such thing",
    405: "Another method is asked for; see Allow",
    406: "Not what the request accepts",
    409: "It does not fit the present state",
    410: "It is no more",
    412: "It is not as the request expects it",
    413: "The body is over a limit",
    415: "Not a type that is taken here",
    422: "The request is not valid; `field` names what, `remedy` says what to do",
    428: "The request must say which version it changes (If-Match)",
    429: "Over the key's rate; again after Retry-After",
    503: "Send it again after Retry-After",
}
PROBLEM_RESPONSES: dict[str, Any] = {
    f"Problem{status}": {
        "description": said,
        **({"headers": _HEADERS[status]} if status in _HEADERS else {}),
        "content": {PROBLEM_CONTENT_TYPE: {"schema": {"$ref": _REF.format(name="Problem")}}},
    }
    for status, said in _SAID.items()
}


def problem_refs(*statuses: int) -> dict[str, Any]:
    """Give the responses of an operation that answers these problems."""
    return {str(s): {"$ref": f"#/components/responses/Problem{s}"} for s in sorted(statuses)}


def complete(
    app: FastAPI,
    document: dict[str, Any],
    answers: Mapping[str, Answer],
    *,
    open_operations: Iterable[str] = (),
    tags: Mapping[str, str],
) -> dict[str, Any]:
    """Complete the OpenAPI `document` of `app`, in place, and give it.

    `answers` are by operation id; `open_operations` are those that ask for no key; `tags` all tags with
    what they are about. Raises ValueError where what is sent and what is answered share a name.
    """
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):  # ours are problems
        schemas.pop(name, None)
    told = schemas_of([a for answer in answers.values() for a in _types(answer)] + [Problem])
    if twice := [name for name, schema in told.items() if schemas.get(name, schema) != schema]:
        raise ValueError(f"two schemas have one name: {', '.join(twice)}; rename one type")
    schemas |= told
    components["responses"] = PROBLEM_RESPONSES
    components["securitySchemes"] = {
        "key": {
            "type": "http", "scheme": "bearer",
            "description": "An API key, made by `baton keys create`. The scopes that an operation names "
            "are those a key needs; `admin` includes all.",
        }
    }  # fmt: skip
    document["security"] = [{"key": []}]
    document["tags"] = [{"name": name, "description": about} for name, about in tags.items()]
    document["info"]["license"] = {"name": "Apache-2.0", "identifier": "Apache-2.0"}
    document["externalDocs"] = {"description": "Error codes", "url": DOCS.rstrip("#")}
    scopes = _scopes(app)
    unsecured = set(open_operations)
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if method in _METHODS:
                id = operation["operationId"]
                _complete(
                    operation, answers.get(id), scopes.get((path, method)),
                    is_open=id in unsecured, has_id="{" in path,
                )  # fmt: skip
    return document


def schemas_of(types: list[Any]) -> dict[str, Any]:
    """Give the JSON Schemas of msgspec `types`, and of what they are made of, by name."""
    distinct = list({id(t): t for t in types}.values())
    _, found = msgspec.json.schema_components(distinct, ref_template=_REF)
    for schema in found.values():
        if "description" in schema:
            schema["description"] = " ".join(schema["description"].split())
    return found


def _types(answer: Answer) -> list[Any]:
    bodies = answer.body if isinstance(answer.body, tuple) else (answer.body,)
    return [t for t in (*bodies, *(type for _, _, type in answer.also)) if t is not None]


def _complete(
    operation: dict[str, Any],
    answer: Answer | None,
    scope: str | None,
    *,
    is_open: bool,
    has_id: bool,
) -> None:
    responses: dict[str, Any] = operation.setdefault("responses", {})
    if answer is not None:
        _tell(operation, responses, answer)
    if is_open:
        operation["security"] = []
    elif scope is not None:
        operation["security"] = [{"key": [scope]}]
    asked = _refusals(operation, is_open=is_open, has_id=has_id)
    for status, told in problem_refs(*asked, *(answer.problems if answer else ())).items():
        # The framework's own 422 and what a route says in passing are told better here.
        if not responses.get(status, {}).get("content") or _is_the_frameworks(responses[status]):
            responses[status] = told
    operation["responses"] = dict(sorted(responses.items()))


def _tell(operation: dict[str, Any], responses: dict[str, Any], answer: Answer) -> None:
    """Say what the operation answers when it went well, unless its route does."""
    told = responses.setdefault(str(answer.status), {"description": "Done"})
    if answer.status != 200:
        responses.pop("200", None)
    if operation.get("description"):
        told["description"] = operation["description"].partition("\n")[0].strip()
    if not _says_something(told) and (answer.body is not None or answer.media != JSON):
        told["content"] = {answer.media: _content(answer)}
    for status, said, type in answer.also:
        other = responses.setdefault(str(status), {"description": said})
        if type is not None:
            other["content"] = {JSON: {"schema": _schema(type)}}
    if answer.sent is not None:
        for content in operation["requestBody"]["content"].values():
            content["example"] = answer.sent


def _refusals(operation: dict[str, Any], *, is_open: bool, has_id: bool) -> set[int]:
    """Give the problems that an operation of this kind can always answer."""
    parameters = operation.get("parameters", ())
    asked = {503} if is_open else {401, 403, 429, 503}
    if has_id:
        asked.add(404)
    if parameters:
        asked.add(422)
    if "requestBody" in operation:
        asked |= {400, 413, 422}
    if any(p.get("name") == "Idempotency-Key" for p in parameters):
        asked |= {400, 409, 422}
    return asked


def _says_something(response: dict[str, Any]) -> bool:
    """Tell whether a route described its answer; of a bare response the framework names no members."""
    content = response.get("content", {})
    schema = content.get(JSON, {}).get("schema", {})
    return any(w in schema for w in ("$ref", "properties", "items", "anyOf")) or bool(
        content.keys() - {JSON}
    )


def _is_the_frameworks(response: dict[str, Any]) -> bool:
    return "HTTPValidationError" in str(response)


def _content(answer: Answer) -> dict[str, Any]:
    if answer.body is None:
        return {"schema": {} if answer.media == "*/*" else {"type": "string"}}
    schema = _schema(answer.body)
    if answer.many:
        schema = {
            "type": "object",
            "required": ["items", "next_cursor", *answer.more],
            "properties": {
                "items": {"type": "array", "items": schema},
                "next_cursor": {
                    "type": ["string", "null"],
                    "description": "ask again with it; null: there is no more",
                },
                **answer.more,
            },
        }
    return {"schema": schema}


def _schema(type: Any) -> dict[str, Any]:
    if isinstance(type, tuple):
        return {"anyOf": [_schema(each) for each in cast("tuple[Any, ...]", type)]}
    [schema], _ = msgspec.json.schema_components([type], ref_template=_REF)
    return schema


def _scopes(app: FastAPI) -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    for route in iter_route_contexts(app.routes):
        dependant = getattr(route, "dependant", None)
        scope = _scope_of(dependant) if dependant is not None else None
        if scope is not None:
            path = str(getattr(route, "path_format", ""))
            methods = cast("Iterable[str]", getattr(route, "methods", None) or ())
            found |= {(path, method.lower()): scope for method in methods}
    return found


def _scope_of(dependant: Dependant) -> str | None:
    own = getattr(dependant.call, "scope", None)
    inner = (_scope_of(each) for each in dependant.dependencies)
    return own or next((scope for scope in inner if scope), None)

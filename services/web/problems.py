"""Every refusal of the API as one kind of document: application/problem+json (RFC 9457).

It says what is wrong, and how to fix it.  It never says what the inside looks like: no traceback, no
SQL, no connection string.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from services.errors import JournalUnavailable, QueryTooSlow, SchemaMissing, StoreUnavailable

MEDIA_TYPE: Final = "application/problem+json"
RETRY_AFTER_S: Final = 5
GIVEN_MAX: Final = 200  # characters of a refused value that are given back

# On every answer.  Scripts and styles come from this server only; nothing may frame the page.
SECURITY_HEADERS: Final[Mapping[str, str]] = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}


class ProblemError(Exception):
    """A refusal.  ``kind`` is the last part of its type, ``extra`` are members of its own."""

    def __init__(
        self,
        status: int,
        kind: str,
        title: str,
        detail: str,
        how_to_fix: str,
        *,
        headers: Mapping[str, str] | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(detail)
        self.status, self.kind, self.title, self.detail, self.how_to_fix = status, kind, title, detail, how_to_fix
        self.headers, self.extra = headers or {}, extra

    def document(self, instance: str) -> dict[str, Any]:
        return {
            "type": f"urn:nevstream:problem:{self.kind}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "how_to_fix": self.how_to_fix,
            "instance": instance,
            **self.extra,
        }


def bad_parameter(name: str, given: object, wrong: str, allowed: str, where: str = "query") -> ProblemError:
    """A parameter that cannot be used: which one, what was given, what is allowed."""
    text = str(given)[:GIVEN_MAX]
    return ProblemError(
        422,
        "bad-parameter",
        "A parameter cannot be used",
        f"{name}: {wrong} (given {text!r})",
        f"Give {name} as {allowed}.",
        errors=[{"parameter": name, "where": where, "given": text, "wrong": wrong, "allowed": allowed}],
    )


def nearest(word: str, known: Iterable[str], most: int = 3) -> list[str]:
    """Known words that look like ``word``, the likeliest first."""
    known, word = list(known), word[:GIVEN_MAX]
    inside = [name for name in known if word and word.lower() in name][:most]
    close = difflib.get_close_matches(word.lower(), known, n=most, cutoff=0.5)
    return list(dict.fromkeys([*close, *inside]))[:most]


def response(request: Request, problem: ProblemError) -> Response:
    document = problem.document(request.url.path)
    try:
        body = orjson.dumps(document)
    except TypeError:  # what was given is told, and is no text: half a surrogate pair
        body = json.dumps(document, default=str).encode()
    return Response(
        body,
        status_code=problem.status,
        media_type=MEDIA_TYPE,
        headers={"Cache-Control": "no-store", **problem.headers},
    )


def from_http(request: Request, error: HTTPException) -> ProblemError:
    """404 and 405 of the router, and whatever else arrives as an HTTPException."""
    path = request.url.path
    if error.status_code == HTTPStatus.NOT_FOUND:
        near = nearest(path, _paths(request))
        hint = f"Did you mean {' or '.join(near)}? " if near else ""
        return ProblemError(
            404, "no-such-path", "No such path", f"There is nothing at {path[:GIVEN_MAX]}.",
            f"{hint}/openapi.json lists every path.",
        )  # fmt: skip
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "GET")
        return ProblemError(
            405, "method-not-allowed", "Method not allowed", f"{path[:GIVEN_MAX]} does not take {request.method}.",
            f"Use {allowed}.", headers={"Allow": allowed},
        )  # fmt: skip
    phrase = HTTPStatus(error.status_code).phrase
    return ProblemError(
        error.status_code, phrase.lower().replace(" ", "-"), phrase, str(error.detail),
        "Compare the request with /openapi.json.", headers=error.headers,
    )  # fmt: skip


def from_validation(errors: Sequence[Mapping[str, Any]]) -> ProblemError:
    """What FastAPI found wrong with the parameters, all of them at once."""
    found = []
    for error in errors:
        where, *names = error["loc"]
        found.append(
            {
                "parameter": ".".join(map(str, names)) or str(where),
                "where": str(where),
                "given": str(error.get("input"))[:GIVEN_MAX],
                "wrong": error["msg"],
                "allowed": _allowed(error),
            }
        )
    first = found[0]
    return ProblemError(
        422,
        "bad-parameter",
        "A parameter cannot be used",
        "; ".join(f"{e['parameter']}: {e['wrong']} (given {e['given']!r})" for e in found),
        f"Give {first['parameter']} as {first['allowed']}.",
        errors=found,
    )


def _allowed(error: Mapping[str, Any]) -> str:
    bounds = error.get("ctx") or {}
    if "expected" in bounds:
        return str(bounds["expected"])
    for key, text in (("ge", "a whole number of {} or more"), ("le", "a whole number of {} or less")):
        if key in bounds:
            return text.format(bounds[key])
    for part, text in (("int", "a whole number"), ("bool", "true or false"), ("missing", "something: it is required")):
        if part in str(error["type"]):
            return text
    return "described in /openapi.json"


def _paths(request: Request) -> list[str]:
    app: FastAPI = request.app
    return list(app.openapi()["paths"])


def from_store(error: StoreUnavailable) -> ProblemError:
    retry = {"Retry-After": str(RETRY_AFTER_S)}
    if isinstance(error, QueryTooSlow):
        return ProblemError(
            503, "query-too-slow", "The query took too long", "The database ended the query after its time-out.",
            "Ask for a shorter time range, fewer fields or a smaller limit.", headers=retry,
        )  # fmt: skip
    if isinstance(error, SchemaMissing):
        return ProblemError(
            503, "no-schema", "The database has no schema yet",
            "The database answers, but the tables of this version are not there.",
            "Run `nevstream migrate`; if that runs already, wait for it to end.", headers=retry,
        )  # fmt: skip
    return ProblemError(
        503, "database-away", "The database does not answer", "The answer needs the database, which does not answer.",
        f"Try again in {RETRY_AFTER_S} seconds; if it lasts, look at the database and at the log of this process.",
        headers=retry,
    )  # fmt: skip


JOURNAL_AWAY: Final = ProblemError(
    503, "journal-away", "The journal does not answer", "The frames go through the journal, which does not answer.",
    "Try again; what was put there already and not said is dropped as a duplicate.",
    headers={"Retry-After": str(RETRY_AFTER_S)},
)  # fmt: skip
INTERNAL: Final = ProblemError(
    500, "internal", "Something is wrong in nevstream", "The request was understood, but answering it failed.",
    "Try again; if it happens again, report it with the time and the request. The log of this process has the details.",
)  # fmt: skip


def install(app: FastAPI) -> None:
    """Make every error of ``app`` a problem document."""

    async def on_problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, ProblemError)
        return response(request, error)

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return response(request, from_http(request, error))

    async def on_validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return response(request, from_validation(error.errors()))

    async def on_store(request: Request, error: Exception) -> Response:
        assert isinstance(error, StoreUnavailable)
        return response(request, from_store(error))

    async def on_journal(request: Request, error: Exception) -> Response:
        assert isinstance(error, JournalUnavailable)
        return response(request, JOURNAL_AWAY)

    async def on_anything(request: Request, _: Exception) -> Response:
        # outermost, beyond the middleware: it puts the headers on itself; the server logs the traceback
        answer = response(request, INTERNAL)
        answer.headers.update(SECURITY_HEADERS)
        return answer

    app.add_exception_handler(ProblemError, on_problem)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(StoreUnavailable, on_store)
    app.add_exception_handler(JournalUnavailable, on_journal)
    app.add_exception_handler(Exception, on_anything)

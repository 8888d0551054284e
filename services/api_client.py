"""The running system's HTTP API, asked from the command line: documents, pages, files; problems become messages.

Knows no stage, and no more of an answer than its cursor.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from email.message import Message
from pathlib import Path
from typing import Any, Final

from schemas.access import well_formed
from services.errors import Unavailable, UsageError
from services.settings import Settings

TIMEOUT_S: Final = 60.0
BYTES_MAX: Final = 512 * 1024 * 1024  # of one answer


def base_of(api: str | None) -> str:
    """``api``, or the address of the system that runs from this directory, or that of the settings."""
    if api is None:
        settings = Settings.read()
        running = settings.runtime_dir / "system.json"
        web = json.loads(running.read_text("utf-8"))["web"] if running.exists() else settings.web.model_dump()
        scheme = "https" if web.get("tls", {}).get("cert_file") else "http"
        api = f"{scheme}://{web['host']}:{web['port']}"
    if not api.startswith(("http://", "https://")):
        raise UsageError(f"--api {api!r}: give a URL that starts with http:// or https://")
    return api.rstrip("/")


def fetch(api: str | None, path: str, **query: Any) -> tuple[bytes, Message]:
    """GET; the body and the headers.

    Raises ``UsageError`` with the problem document's own words for what cannot be answered as asked, and
    ``Unavailable`` when nothing answers, or the database behind it does not.
    """
    base = base_of(api)
    words = urllib.parse.urlencode({k: v for k, v in query.items() if v is not None})
    url = f"{base}{path}{('&' if '?' in path else '?') + words if words else ''}"
    try:
        request = urllib.request.Request(url, headers=_who())  # noqa: S310 - base_of has checked the scheme
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310 - as above
            body: bytes = answer.read(BYTES_MAX + 1)
            headers: Message = answer.headers
    except urllib.error.HTTPError as error:
        with error:
            told = problem_of(error, url)
        raise (Unavailable(told) if error.code >= 500 else UsageError(told)) from error
    except (urllib.error.URLError, OSError) as error:
        raise Unavailable(f"no answer from {base}: {error}; is `nevstream up` running there? (--api URL)") from error
    if len(body) > BYTES_MAX:
        raise UsageError(f"{url}: the answer is larger than {BYTES_MAX >> 20} MB; ask for a shorter range")
    return body, headers


def _who() -> dict[str, str]:
    """The token of whoever calls the command, from the environment or a file: never from the command line."""
    token, file = os.environ.get("NEVSTREAM_TOKEN"), os.environ.get("NEVSTREAM_TOKEN_FILE")
    if not token and file:
        try:
            token = Path(file).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"NEVSTREAM_TOKEN_FILE: {file} cannot be read: {error}") from error
    token = (token or "").strip()
    if not token:
        return {}
    if not well_formed(token):
        raise UsageError("NEVSTREAM_TOKEN (or the file of NEVSTREAM_TOKEN_FILE) holds no token: nst_ and 43 characters")
    return {"Authorization": f"Bearer {token}"}


def problem_of(error: urllib.error.HTTPError, url: str) -> str:
    """What a problem document says, in one line."""
    try:
        problem: Mapping[str, Any] = json.loads(error.read() or b"{}")
    except ValueError:  # something else than this API answered, such as a proxy
        problem = {}
    told = (problem.get("title", error.reason), problem.get("detail", url), problem.get("how_to_fix", ""))
    return ". ".join(str(word).rstrip(".") for word in told if word)


def ask(api: str | None, path: str, **query: Any) -> Any:
    """GET a JSON document."""
    body, _ = fetch(api, path, **query)
    return json.loads(body)


def ask_pages(api: str | None, path: str, key: str, most: int, **query: Any) -> dict[str, Any]:
    """A list that comes in pages, as one document: the first page with up to ``most`` rows under ``key``.

    ``next`` and ``next_cursor`` are those of the last page that was asked for: null when there is no more.
    """
    document: dict[str, Any] = ask(api, path, **query, limit=min(most, _PAGE))
    rows = document[key]
    while document.get("next") and len(rows) < most:
        page = ask(api, _with_limit(document["next"], min(most - len(rows), _PAGE)))
        rows += page[key]
        document |= {name: page[name] for name in ("next", "next_cursor")}
    document["count"] = len(rows)
    return document


def _with_limit(link: str, limit: int) -> str:
    path, _, words = link.partition("?")
    return f"{path}?{urllib.parse.urlencode({**dict(urllib.parse.parse_qsl(words)), 'limit': limit})}"


_PAGE: Final = 1_000

"""The API's stream of alarms, read from the command line: server-sent events, resumed when the connection breaks."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any, Final

from services.api_client import base_of, problem_of
from services.errors import Unavailable, UsageError

_SILENCE_S: Final = 60.0  # the API says something every 15 s
_PAUSE_S: Final = 3.0


def follow(api: str | None, after: int | None, say: Callable[[str], object], **words: Any) -> Iterator[dict[str, Any]]:
    """Events as they come, for ever.  ``say`` hears of a connection that broke.

    Raises ``UsageError`` for what the API refuses, and ``Unavailable`` when it cannot be reached at the beginning.
    """
    base = base_of(api)
    query = {name: value for name, value in words.items() if value is not None}
    last = None if after is None else str(after)
    begun = False
    while True:
        headers = {} if last is None else {"Last-Event-ID": last}
        url = f"{base}/v1/alarms/stream?{urllib.parse.urlencode(query)}"
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 - base_of has checked the scheme
        try:
            with urllib.request.urlopen(request, timeout=_SILENCE_S) as answer:  # noqa: S310
                begun = True
                for number, event in _events(answer):
                    last = number or last
                    if event is not None:
                        yield event
            said = "the API ended the stream"
        except urllib.error.HTTPError as error:
            with error:
                told = problem_of(error, url)
            if error.code < 500:
                raise UsageError(told) from error
            said = told
        except (urllib.error.URLError, OSError) as error:
            if not begun:
                raise Unavailable(
                    f"no answer from {base}: {error}; is `nevstream up` running there? (--api URL)"
                ) from error
            said = f"the connection to {base} broke ({error})"
        say(f"{said}; trying again in {_PAUSE_S:g} s")
        time.sleep(_PAUSE_S)


def _events(answer: Any) -> Iterator[tuple[str | None, dict[str, Any] | None]]:
    """(id, document) as they come; the document is None where only the id moves on."""
    fields: dict[str, str] = {}
    for raw in answer:
        text = raw.decode().rstrip("\r\n")
        if text:
            name, _, value = text.partition(":")
            fields[name] = value.strip()
            continue
        if "data" in fields:
            document = json.loads(fields["data"])
            yield fields.get("id"), document if "event" in document else {"event": fields.get("event"), **document}
        elif "id" in fields:
            yield fields["id"], None
        fields = {}

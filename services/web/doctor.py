"""Why a vehicle is silent: findings in plain sentences, the most likely cause first.

:func:`diagnose` draws the conclusions from what the store found; it asks nothing itself, so the command line and
the tests use it as it is.  It must never guess without saying what it saw: every finding has its evidence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import IntEnum
from typing import Any, Final
from zoneinfo import ZoneInfo

from schemas.gbt32960.times import read_time
from schemas.link_events import CAUSES
from schemas.reasons import BY_CODE, BY_NAME, reason_name
from services.settings import MqttAuth, Registry, Settings
from services.web.answers import DOORS

REPORTING_WITHIN: Final = timedelta(minutes=5)
CLOCK_OFF_S: Final = 60.0  # beyond this, the clock or the line is worth a word
MISSING_SHARE: Final = 0.02
BACKLOG_OLD: Final = timedelta(seconds=60)
FIGHTING: Final = 3  # replacements in a day that are no coincidence
_AT_TIME: Final = slice(24, 30)  # collection time in a frame


class Severity(IntEnum):
    """How bad; ``ok`` is said when nothing is."""

    OK = 0
    INFO = 1
    WARNING = 2
    ERROR = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence, what it rests on, and what to do."""

    code: str
    severity: Severity
    sentence: str
    to_do: str
    evidence: dict[str, Any] = field(default_factory=dict)


def diagnose(vin: str, facts: Mapping[str, Any], settings: Settings, now: datetime) -> list[Finding]:
    """Findings about ``vin``, the most likely cause of its state first.  ``facts``: ``services.store.diagnosis``."""
    case = _Case(vin, facts, settings, now)
    findings = [finding for look in _LOOKS for finding in look(case)]
    cause = case.cause()
    rest = [one for one in findings if one.code != cause.code]
    return [cause, *sorted(rest, key=lambda one: -one.severity)]


class _Case:
    """The facts of one vehicle, with the words for them."""

    def __init__(self, vin: str, facts: Mapping[str, Any], settings: Settings, now: datetime) -> None:
        self.vin, self.facts, self.settings, self.now = vin, facts, settings, now
        self.vehicle: Mapping[str, Any] | None = facts["vehicle"]
        self.events: Mapping[str, Mapping[str, Any]] = facts["events"]
        self.letters: list[dict[str, Any]] = facts["letters"]
        self.last_received: datetime | None = self.vehicle["last_received_at"] if self.vehicle else None

    # -- what is true of it ------------------------------------------------------------------------
    @property
    def reporting(self) -> bool:
        """Whether the newest report has arrived as lately as its usual interval lets one expect."""
        if self.last_received is None:
            return False
        interval_s = (self.facts["gaps"] or {}).get("interval_s") or 0
        return self.ago(self.last_received) <= max(REPORTING_WITHIN, timedelta(seconds=3 * float(interval_s)))

    @property
    def registered(self) -> bool:
        return bool(self.vehicle and self.vehicle["registered"])

    @property
    def allowlist(self) -> bool:
        return self.settings.gateway.registry is Registry.ALLOWLIST

    def ago(self, time: datetime) -> timedelta:
        return max(self.now - time, timedelta(0))

    def at(self, time: datetime) -> str:
        """``time`` as people say it: so long ago."""
        return f"{span(self.ago(time))} ago"

    def local(self, time: datetime) -> str:
        """``time`` in the fleet's zone."""
        return time.astimezone(ZoneInfo(self.settings.time_zone)).isoformat(" ", "seconds")

    def event(self, name: str) -> Mapping[str, Any] | None:
        return self.events.get(name)

    def after_last_report(self, time: datetime) -> bool:
        return self.last_received is None or time > self.last_received

    def newest(self) -> Mapping[str, Any] | None:
        """The newest event that says where the vehicle's connection stands."""
        ways = [one for name in ("connected", "refused", "replaced", "closed") if (one := self.event(name))]
        return max(ways, key=lambda one: (one["occurred_at"], one["number"]), default=None)

    # -- the most likely cause ---------------------------------------------------------------------
    def cause(self) -> Finding:
        for attempt in (
            self._backlog, self._bridge_lost, self._never, self._unknown, self._refused, self._letters, self._fighting
        ):  # fmt: skip
            if found := attempt():
                return found
        if self.reporting:
            return self._fine()
        return self._silent()

    def _bridge_lost(self) -> Finding | None:
        """All connections to the broker are gone, and it is from there that this vehicle's frames come."""
        bridge = self.facts.get("bridge") or []
        if not self.settings.gateway.bridge.enabled or not bridge or self.reporting:
            return None
        if any(one["event"] == "connected" for one in bridge):
            return None
        if self.vehicle is None or DOORS.get(self.vehicle["door"]) != "mqtt_bridge":
            return None
        newest = max(bridge, key=lambda one: one["occurred_at"])
        meaning, remedy = _explained(newest["cause"] or "")
        return Finding(
            "bridge_lost",
            Severity.ERROR,
            f"{self.vin} comes through the broker {newest['peer']}, and the bridge to it is down since "
            f"{self.at(newest['occurred_at'])}: {meaning}.",
            "The broker keeps what it cannot deliver for gateway.bridge.session_expiry_s. " + remedy,
            _event_evidence(newest),
        )

    def _never(self) -> Finding | None:
        seen = self.events or self.letters or self.facts["last_letter"] or self.facts["last_login"]
        if seen or self.last_received or (self.vehicle and self.vehicle["first_seen_at"]):
            return None
        gateway = self.settings.gateway
        doors = [
            f"{name} {door.host}:{door.port}"
            for name, door in (("MQTT", gateway.mqtt), ("GB/T 32960", gateway.gbt32960))
            if door.enabled
        ]
        if gateway.bridge.enabled:
            doors.append("the broker {}:{}".format(*gateway.bridge.address))
        in_registry = "it is in the registry" if self.registered else "it is in no registry either"
        return Finding(
            "never_seen",
            Severity.ERROR,
            f"{self.vin} has never reached this system: no connection, no login and no frame bears this VIN, "
            f"and {in_registry}.",
            f"Check the VIN that the terminal sends, and that it connects to one of {', '.join(doors) or 'the doors'} "
            "(address, port, SIM card, firewall).",
            {"registered": self.registered},
        )

    def _backlog(self) -> Finding | None:
        backlog = self.facts["backlog"]
        if not backlog or not backlog["records"] or self.ago(backlog["oldest"]) < BACKLOG_OLD:
            return None
        return Finding(
            "backlog",
            Severity.ERROR,
            f"What {self.vin} sent may wait in the journal: the pipeline is behind by "
            f"{span(self.ago(backlog['oldest']))} on its partition.",
            "Nothing is lost. See whether the pipeline runs (`nevstream up`, its log) and "
            "nevstream_pipeline_lag_seconds; add pipeline.processes when it cannot keep up.",
            {"records": backlog["records"], "oldest": backlog["oldest"]},
        )

    def _unknown(self) -> Finding | None:
        if not self.allowlist or self.registered:
            return None
        refused = self.event("refused")
        evidence: dict[str, Any] = {"registered": False, "gateway.registry": "allowlist"}
        tried = ""
        if refused and refused["cause"] == "unknown_vin":
            evidence |= _event_evidence(refused)
            tried = f"; it tried {self.at(refused['occurred_at'])} from {refused['peer']}"
        return Finding(
            "not_in_allowlist",
            Severity.ERROR,
            f"{self.vin} is refused because it is not in the registry, and the registry is an allowlist{tried}.",
            f'Run `nevstream vehicles add {self.vin}`, or set gateway.registry = "open".',
            evidence,
        )

    def _refused(self) -> Finding | None:
        refused = self.newest()
        if refused is None or refused["event"] != "refused" or self.reporting:
            return None
        cause = refused["cause"] or ""
        meaning, remedy = _explained(cause)
        door = DOORS.get(refused["door"], "?")
        return Finding(
            cause if cause == "bad_password" else f"refused_{cause}",
            Severity.ERROR,
            f"{self.vin} is not let in: {meaning}. It last tried {self.at(refused['occurred_at'])} over {door} "
            f"from {refused['peer']}.",
            _REFUSAL_REMEDY.get(cause, remedy).replace("{vin}", self.vin),
            _event_evidence(refused),
        )

    def _letters(self) -> Finding | None:
        newest = next((one for one in self.letters if self.after_last_report(one["last_at"])), None)
        if newest is None or self.reporting:
            return None
        return self.letter_finding(newest, Severity.ERROR)

    def letter_finding(self, letter: Mapping[str, Any], severity: Severity) -> Finding:
        name = reason_name(letter["reason"])
        reason = BY_CODE.get(letter["reason"])
        dated, off = "", _dated(letter)
        evidence = {"reason": name, "in_a_day": letter["in_a_day"], "last_at": letter["last_at"], "id": letter["id"]}
        if off is not None and name.startswith("clock_"):
            way = "ahead of" if off > timedelta(0) else "behind"
            dated = f"; the newest is dated {span(abs(off))} {way} its arrival, so the terminal's clock is wrong"
            evidence["clock_offset_s"] = off.total_seconds()
        frames = "1 frame" if letter["in_a_day"] == 1 else f"{letter['in_a_day']} frames"
        return Finding(
            f"dead_letters_{name}",
            severity,
            f"{frames} of {self.vin} in the last day became dead letters ({name}), the newest "
            f"{self.at(letter['last_at'])}{dated}.",
            f"{reason.remedy if reason else 'Update this program.'} See `nevstream dead-letters show {letter['id']}`.",
            evidence,
        )

    def _fighting(self) -> Finding | None:
        replaced = self.event("replaced")
        if replaced is None or self.ago(replaced["occurred_at"]) > timedelta(days=1):
            return None
        many = replaced["in_a_day"] >= FIGHTING
        if not many and (self.reporting or not self.after_last_report(replaced["occurred_at"])):
            return None
        return self.replaced_finding(replaced, Severity.ERROR if many else Severity.WARNING)

    def replaced_finding(self, replaced: Mapping[str, Any], severity: Severity) -> Finding:
        times = f"{replaced['in_a_day']} times in the last day" if replaced["in_a_day"] > 1 else "once in the last day"
        other = host(replaced["by_peer"]) != host(replaced["peer"])
        why = "another machine" if other else "the same address"
        return Finding(
            "replaced",
            severity,
            f"A connection of {self.vin} was closed because the same VIN connected anew, {times}: "
            f"{replaced['peer']} was replaced by {replaced['by_peer']} ({why}) {self.at(replaced['occurred_at'])}.",
            "Two terminals may send this VIN: find the one at the other address and correct it."
            if other
            else "The terminal connects again without closing: look at its line, its time-outs, or two sessions on it.",
            _event_evidence(replaced) | {"in_a_day": replaced["in_a_day"]},
        )

    def _fine(self) -> Finding:
        assert self.vehicle is not None
        assert self.last_received is not None
        door = DOORS.get(self.vehicle["door"], "?")
        return Finding(
            "fine",
            Severity.OK,
            f"{self.vin} is reporting: its newest report came {self.at(self.last_received)} over {door}.",
            "Nothing.",
            {"last_received_at": self.last_received, "reports": self.vehicle["reports"]},
        )

    def _silent(self) -> Finding:
        newest = self.newest()
        last = self.last_received
        heard = f"its last report came {self.at(last)}" if last else "it has never sent a report that could be stored"
        evidence: dict[str, Any] = {"last_received_at": last}
        if newest is None:
            sentence = f"{self.vin} is silent: {heard}, and no event of its connection is kept."
            to_do = (
                "See whether the terminal has power and a network; it reports only while the vehicle is on or charging."
            )
            return Finding("silent", Severity.WARNING, sentence, to_do, evidence)
        evidence |= _event_evidence(newest)
        if newest["event"] in ("connected", "replaced"):
            since = self.event("connected") or newest
            sentence = (
                f"{self.vin} is connected since {span(self.ago(since['occurred_at']))} from {since['peer']}, "
                f"but sends no reports: {heard}."
            )
            to_do = (
                "Look at the terminal: it logs in and does not collect. Reports are due every 30 s at most (clause 7)."
            )
            return Finding("connected_no_reports", Severity.WARNING, sentence, to_do, evidence)
        meaning, _ = _explained(newest["cause"] or "")
        sentence = (
            f"{self.vin} is silent since {span(self.ago(max(last or newest['occurred_at'], newest['occurred_at'])))}: "
            f"{heard}, and its connection ended {self.at(newest['occurred_at'])} ({meaning})."
        )
        to_do = _CLOSED_REMEDY.get(
            newest["cause"] or "",
            "See whether the terminal has power and a network, and whether the vehicle is parked.",
        )
        return Finding("silent", Severity.WARNING, sentence, to_do, evidence)


# -- further findings ---------------------------------------------------------------------------------


def _login(case: _Case) -> Iterator[Finding]:
    """Last TLS or authentication result, as far as an event says."""
    tried = [one for name in ("connected", "refused") if (one := case.event(name))]
    if not tried:
        return
    newest = max(tried, key=lambda one: (one["occurred_at"], one["number"]))
    good = newest["event"] == "connected"
    door = DOORS.get(newest["door"], "?")
    result = f"succeeded ({newest['detail']})" if good else f"was refused: {_explained(newest['cause'] or '')[0]}"
    yield Finding(
        "last_login",
        Severity.INFO,
        f"The last login, {case.at(newest['occurred_at'])} over {door} from {newest['peer']}, {result}.",
        "Nothing." if good else "See the first finding.",
        _event_evidence(newest),
    )


def _last_frame(case: _Case) -> Iterator[Finding]:
    if case.last_received is None or case.vehicle is None:
        return
    yield Finding(
        "last_frame",
        Severity.INFO,
        f"The newest stored report is dated {case.local(case.vehicle['last_time'])} and came "
        f"{case.at(case.last_received)}; {case.vehicle['reports']} reports are stored.",
        "Nothing.",
        {"time": case.vehicle["last_time"], "received_at": case.last_received, "reports": case.vehicle["reports"]},
    )


def _errors(case: _Case) -> Iterator[Finding]:
    error = case.event("error")
    if error is None:
        return
    meaning, remedy = _explained(error["cause"] or "")
    told = f" and {error['detail']}" if error["detail"] else ""
    recent = case.ago(error["occurred_at"]) <= timedelta(days=1)
    yield Finding(
        "last_error_answer",
        Severity.WARNING if recent else Severity.INFO,
        f"A frame was refused {case.at(error['occurred_at'])}{told}: {meaning}.",
        remedy,
        _event_evidence(error) | {"in_a_day": error["in_a_day"]},
    )


def _replaced(case: _Case) -> Iterator[Finding]:
    replaced = case.event("replaced")
    if replaced is not None and case.ago(replaced["occurred_at"]) <= timedelta(days=1):
        many = replaced["in_a_day"] >= FIGHTING
        yield case.replaced_finding(replaced, Severity.WARNING if many else Severity.INFO)


def _clock(case: _Case) -> Iterator[Finding]:
    clock = case.facts["clock"]
    if not clock or not clock["reports"]:
        return
    median_s = float(clock["median_s"])
    evidence = {name: clock[name] for name in ("reports", "least_s", "median_s", "most_s")}
    if abs(median_s) < CLOCK_OFF_S:
        yield Finding(
            "clock", Severity.INFO, f"Its reports arrive {median_s:.1f} s after they are dated: the clock is right.",
            "Nothing.", evidence,
        )  # fmt: skip
        return
    steady = float(clock["most_s"]) - float(clock["least_s"]) < CLOCK_OFF_S
    if median_s < 0:
        what = (
            f"Its reports are dated {span(timedelta(seconds=-median_s))} in the future: the terminal's clock is ahead."
        )
    elif steady:
        what = (
            f"Its reports arrive {span(timedelta(seconds=median_s))} after they are dated, always: its clock is behind."
        )
    else:
        what = f"Its live reports arrive {span(timedelta(seconds=median_s))} late, more or less: the line delays them."
    to_do = (
        "Set the terminal's clock, in Beijing time (time sync, 0x08)."
        if median_s < 0 or steady
        else "Look at the line."
    )
    yield Finding("clock", Severity.WARNING, what, to_do, evidence)


def _missing(case: _Case) -> Iterator[Finding]:
    gaps = case.facts["gaps"]
    if not gaps or not gaps["interval_s"] or gaps["reports"] < 10:
        return
    share = gaps["missing"] / (gaps["reports"] + gaps["missing"])
    bad = share > MISSING_SHARE
    yield Finding(
        "missing_share",
        Severity.WARNING if bad else Severity.INFO,
        f"Of the last day, {share:.1%} of its reports are missing: {gaps['reports']} came, one every "
        f"{float(gaps['interval_s']):g} s as a rule, and {gaps['missing']} gaps are open.",
        "Look for lost links (finding `silent`, `replaced`), and whether the terminal sends what it kept as 0x03."
        if bad
        else "Nothing.",
        {**{name: gaps[name] for name in ("reports", "missing", "interval_s", "first", "last")}, "share": share},
    )


def _dead_letters(case: _Case) -> Iterator[Finding]:
    for letter in case.letters:
        yield case.letter_finding(letter, Severity.WARNING)


def _registry(case: _Case) -> Iterator[Finding]:
    gateway = case.settings.gateway
    if case.registered or case.allowlist:
        state = "is in the registry" if case.registered else "is not in the registry"
    else:
        state = "is not in the registry, which is open to any VIN"
    has_password = bool(case.vehicle and case.vehicle["has_password"])
    needs = gateway.mqtt.auth is MqttAuth.PASSWORD
    bad = needs and not has_password
    yield Finding(
        "registry",
        Severity.WARNING if bad else Severity.INFO,
        f"{case.vin} {state} and {'has a' if has_password else 'has no'} password"
        f"{', which MQTT asks for' if needs else ''}.",
        f"Set one for MQTT: `nevstream vehicles set-password {case.vin}`." if bad else "Nothing.",
        {"registered": case.registered, "has_password": has_password, "gateway.registry": str(gateway.registry)},
    )


def _backlog(case: _Case) -> Iterator[Finding]:
    backlog = case.facts["backlog"]
    waiting = backlog["records"] if backlog else 0
    yield Finding(
        "journal",
        Severity.INFO,
        f"{waiting} records of its journal partition wait to be stored."
        if waiting
        else "Nothing waits in the journal.",
        "Nothing.",
        dict(backlog or {}),
    )


def _will(case: _Case) -> Iterator[Finding]:
    will = case.event("will")
    if will is not None:
        yield Finding(
            "offline", Severity.INFO,
            f"Its MQTT client vanished {case.at(will['occurred_at'])} without DISCONNECT and left a will.", "Nothing.",
            _event_evidence(will),
        )  # fmt: skip


def _bridge(case: _Case) -> Iterator[Finding]:
    bridge = case.facts.get("bridge") or []
    if not case.settings.gateway.bridge.enabled or not bridge:
        return
    up = [one for one in bridge if one["event"] == "connected"]
    down = [one for one in bridge if one["event"] != "connected"]
    newest = max(down or up, key=lambda one: one["occurred_at"])
    lost = f"; the newest loss, {case.at(newest['occurred_at'])}: {_explained(newest['cause'])[0]}" if down else ""
    yield Finding(
        "bridge",
        Severity.INFO if up else Severity.WARNING,
        f"{len(up)} of {len(bridge)} known connections of the bridge to the broker are up{lost}.",
        "Nothing." if up else "See the gateway's log (nevstream.bridge) and nevstream_gateway_bridge_connections.",
        _event_evidence(newest),
    )


_LOOKS: Final = (
    _login, _last_frame, _errors, _replaced, _clock, _missing, _dead_letters, _registry, _backlog, _will, _bridge
)  # fmt: skip

_REFUSAL_REMEDY: Final = {
    "bad_password": "Set the password anew on both sides: `nevstream vehicles set-password {vin}`. The user name is "
    "the VIN.",
    "bad_token": "Give the vehicle a new token for this VIN, signed with a key of gateway.mqtt's key set; the evidence "
    "says what was wrong with the last one. When many are refused, look at the clocks of both sides.",
    "certificate": "Issue a certificate whose CN or SAN is {vin}; the evidence says whom the one that it has is for.",
    "unknown_vin": 'Run `nevstream vehicles add {vin}`, or set gateway.registry = "open".',
    "foreign_vin": "Its certificate, or its login on this connection, is for another VIN: correct what it sends.",
    "bad_vin": "Send the VIN in ASCII, shorter codes padded with 0x00 on the right.",
    "not_a_vehicle": "Give the client the VIN, 17 characters, as its user name or its client identifier.",
    "auth_method": "MQTT 5's extended authentication is not offered: use user name and password, a token, or a "
    "certificate.",
    "client_id": "Set clean session, or give the client an identifier (MQTT 3.1.1, clause 3.1.3.1).",
    "will_retain": "Publish the will without the retain flag.",
    "packet_size": "Raise the client's maximum packet size, to 256 or more; leaving it out does best.",
    "handshake": "Compare protocol version, server name and certificates of both sides with `openssl s_client`; on a "
    "very slow line raise gateway.limits.handshake_timeout_s.",
    "no_login": "It connects and says nothing: look at its line, and whether it speaks this door's protocol (TLS or "
    "not, MQTT or GB/T 32960).",
    "store_away": "See whether PostgreSQL answers; vehicles are let in again when it does.",
    "limit": "Raise gateway.limits.connections_max, or start more gateway processes.",
    "address_limit": "Raise gateway.limits.connections_per_address_max; name load balancers in unlimited_addresses.",
    "connect_rate": "Find out what connects so often from that address; for a NAT with more vehicles raise "
    "gateway.limits.connects_per_address_per_s_max.",
    "slow_sender": "The line is very slow, or it is no vehicle: see gateway.limits.packet_timeout_s.",
    "refused_in_a_row": "It sends nothing that can be used: `nevstream dead-letters list` has what it sent.",
    "violation": "The client breaks the protocol; the evidence says how. Check its library and its settings.",
}
_CLOSED_REMEDY: Final = {
    "logout": "The terminal logged out, as it does when the vehicle is switched off. It logs in when it is used again.",
    "goodbye": "The client said DISCONNECT, as it does when the vehicle is switched off.",
    "slow_sender": "A packet did not become whole in time: look at network coverage, and at packet_timeout_s.",
    "answers_unread": "The terminal did not read its answers: look at its firmware, and at answer_timeout_s.",
    "refused_in_a_row": "It sent nothing that could be used: `nevstream dead-letters list` has what it sent.",
    "timeout": "It fell silent and the line was given up: look at network coverage, and at its heartbeat period.",
    "bad_token": "Its token ended, and the connection with it: see whether it fetches a new one before that.",
    "foreign_topic": "It published under another VIN: correct its topic, or the VIN that it connects with.",
    "violation": "The client broke the protocol; the evidence says how. Check its library and its settings.",
    "memory": "Too many half packets were held at once: raise gateway.limits.in_flight_bytes_max, or add processes.",
    "taken_over": "The same VIN connected anew: see whether two terminals send it.",
    "peer": "The line broke, or the terminal was switched off: look at network coverage and power.",
    "shutdown": "The gateway was stopped; the terminal should have come back: see whether one runs where it connects.",
    "unknown_vin": "It was taken out of the registry while connected; import it again if that was a mistake.",
}


def _explained(cause: str) -> tuple[str, str]:
    """(meaning, remedy) of a cause or reason, as the middle of a sentence."""
    if reason := BY_NAME.get(cause):
        return reason.meaning.rstrip("."), reason.remedy
    return CAUSES.get(cause, cause or "no cause is known"), "See the gateway's log."


def _event_evidence(event: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("event", "occurred_at", "cause", "peer", "client", "by_peer", "detail")
    return {name: event[name] for name in kept if event[name]} | {"door": DOORS.get(event["door"], str(event["door"]))}


def _dated(letter: Mapping[str, Any]) -> timedelta | None:
    """How far ahead of its arrival the newest frame of these letters is dated."""
    head = bytes(letter["head"] or b"")
    when = read_time(head[_AT_TIME]) if len(head) >= _AT_TIME.stop else None
    return None if when is None else when - letter["last_at"]


def host(peer: str | None) -> str:
    return (peer or "").rpartition(":")[0]


def span(length: timedelta) -> str:
    """A length of time in the unit that fits."""
    seconds = length.total_seconds()
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 1.9 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"

"""GB/T 32960 over TCP: vehicle and platform links, both editions on one port.

Reports stay in the kernel, which walks ``gbt_rules``; this file handles what changes a connection:
logins, logouts, and what is answered at once (heartbeat, time sync).
"""

from __future__ import annotations

import hmac
import logging
import time
from typing import Final

import numpy as np

from schemas.batch import I64, U8, VIN_BYTES
from schemas.batch import Door as DoorNumber
from schemas.gbt32960.commands import EDITION_OF_MARK, Ack, Command, Encryption
from schemas.gbt32960.frame import (
    AT_ACK,
    AT_COMMAND,
    AT_ENCRYPTION,
    AT_LENGTH,
    AT_UNIT,
    AT_VIN,
    build_frame,
    vin_ok,
)
from schemas.gbt32960.reference import decode_frame
from schemas.gbt32960.replies import reply, time_sync_reply
from schemas.link_events import Event
from schemas.reasons import CODE as REASON
from schemas.reasons import reason_name
from services.gateway.admission import Admission, Verdict
from services.gateway.checking import Checking
from services.gateway.columns import (
    F_ACK,
    F_DETAIL,
    F_REASON,
    F_SLOT,
    F_START,
    REFUSED_BYTES_MAX,
    SEG_AT,
)
from services.gateway.connections import State
from services.gateway.door import DENIALS, BaseDoor
from services.gateway.events import Events
from services.gateway.gbt_rules import ANSWER, ASK, BIND, LOOK, NEXT, actions, error_flags, success_flags
from services.gateway.intake import Intake
from services.gateway.link import Link
from services.gateway.scan_gbt import gbt_scan
from services.gateway.secrets import PASSWORD
from services.settings import AckPolicy, Activation, GbtAuth, Login, SameVin, Settings

log = logging.getLogger("nevstream.gateway")

_DOLLAR: Final = 0x24

# Shortest data units of a login in the clear (tables 6, 21/29; 2025: no battery management system at all).
_LOGIN_UNIT_MIN: Final = {0x23: 30, 0x24: 29}
_PLATFORM_LOGIN_UNIT: Final = 41
# Status and information of an activation's result (2025, table B.4).
_ACTIVATED: Final = bytes((1, 0))
_NOT_ACTIVATED: Final = bytes((2, 2))
_USER: Final = slice(AT_UNIT + 8, AT_UNIT + 20)


class GbtDoor(BaseDoor):
    name = "gbt32960"
    number = int(DoorNumber.GBT_TCP)

    def __init__(self, settings: Settings, intake: Intake, admission: Admission, events: Events) -> None:
        super().__init__(settings, intake, admission, events)
        gbt = self.gbt = settings.gateway.gbt32960
        self._rules: U8 = actions(gbt.login is Login.REQUIRED)
        self._success: U8 = success_flags(gbt.ack is AckPolicy.AFTER_DURABLE)
        self._errors: U8 = error_flags()
        self.checking: Checking | None = None
        self._certificate_required = gbt.auth is GbtAuth.CERTIFICATE
        self._users = {
            user.encode(): password.get_secret_value().encode() for user, password in gbt.platform_users.items()
        }

    # -- hot path ----------------------------------------------------------------------------------
    def scan(self, arena: U8, segments: I64) -> tuple[int, int]:
        rows, intake = self.rows, self.intake
        gbt_scan(
            arena,
            segments,
            self.limits.frame_bytes_max,
            rows.partitions,
            self._rules,
            self._success,
            self._errors,
            rows.state,
            rows.vin,
            rows.partition,
            intake.frames,
            intake.slow,
            self.counts,
        )
        found = int(self.counts[0])
        if found and self.admission.allowlist:
            self._refuse_unregistered(arena, intake.frames[:found])
        if found and self.checking is not None:
            self.checking.refuse(arena, intake.frames[:found], self._errors)
        return found, int(self.counts[2])

    def settle(self, frames: int) -> None:
        if frames:
            intake = self.intake
            group = intake.committer.filling
            group.absorb(intake.arena, intake.frames, frames, self.number, intake.received_us, intake.now_s)
            group.answer_frames(intake.arena, intake.frames, frames, self.rows.serial)

    def _refuse_unregistered(self, arena: U8, frames: I64) -> None:
        """A platform speaks only for vehicles in the allowlist; a vehicle's own link was checked at its login."""
        open_ended = np.flatnonzero((frames[:, F_REASON] == 0) & (self.rows.state[frames[:, F_SLOT]] != State.VEHICLE))
        if not len(open_ended):
            return
        start = frames[open_ended, F_START]
        vins = arena[start[:, None] + np.arange(AT_VIN, AT_VIN + VIN_BYTES)]
        unknown = open_ended[~self.admission.known(vins.view(f"S{VIN_BYTES}")[:, 0])]
        reason = REASON["unknown_vin"]
        frames[unknown, F_REASON] = reason
        frames[unknown, F_DETAIL] = AT_VIN
        frames[unknown, F_ACK] = self._errors[reason, (arena[frames[unknown, F_START]] == _DOLLAR).astype(np.int64)]

    # -- everything else ---------------------------------------------------------------------------
    def handle(self, link: Link, segment: I64, kind: int, start: int, length: int, code: int) -> None:
        if self.rows.state[link.slot] == State.CLOSING:
            return
        frame = self.intake.arena[start : start + length]
        if link.denied:
            self._deny(link, frame)
        elif kind == ASK:
            request = frame.tobytes()
            if code == Command.TIME_SYNC:
                link.write_soon(time_sync_reply(request, int(time.time())))
            else:
                link.write_soon(reply(request, Ack.SUCCESS))
        elif kind == BIND:
            self._bind_without_login(link, segment, frame)
        elif kind == LOOK:
            self._activate(link, frame)
        elif kind == ANSWER:
            self._answered(link, frame)
        elif code == Command.LOGIN:
            self._login(link, frame)
        elif code == Command.PLATFORM_LOGIN:
            self._platform_login(link, frame)
        else:
            self._logout(link, frame, code)

    def _deny(self, link: Link, frame: U8) -> None:
        """Answer the first command of a connection that is refused for a limit; it is not kept, as nothing is lost."""
        vin = frame[AT_VIN:AT_ENCRYPTION].tobytes().rstrip(b"\0").decode("ascii", "backslashreplace")
        self.turn_away(link, link.denied, vin, DENIALS[link.denied])
        link.write(reply(frame.tobytes(), Ack.ERROR))
        self.end(link)

    def _login(self, link: Link, frame: U8) -> None:
        identification = frame[AT_VIN:AT_ENCRYPTION].tobytes()
        reason, detail = self._vin_refusal(link, frame)
        if self.rows.state[link.slot] == State.VEHICLE and identification != self.rows.vin[link.slot].tobytes():
            reason, detail = REASON["foreign_vin"], AT_VIN
        in_clear = frame[AT_ENCRYPTION] == Encryption.NONE
        if not reason and in_clear and len(frame) < AT_UNIT + _LOGIN_UNIT_MIN[int(frame[0])] + 1:
            reason, detail = REASON["structure"], AT_LENGTH
        if not reason and not in_clear and self.checking is not None:
            reason, detail = self.checking.reason(frame.tobytes()), AT_UNIT
        older = self.by_vin.get(identification.rstrip(b"\0").decode("ascii", "replace"))
        if not reason and self.gbt.same_vin is SameVin.REFUSE and older not in (None, link):
            reason, detail = REASON["vin_in_use"], AT_VIN
        if reason:
            self._turn_away(link, frame, reason, detail)
            return
        link.edition = EDITION_OF_MARK[int(frame[0])]
        self.bind(link, NEXT[Command.LOGIN], identification, self.limits.idle_timeout_s, _how(frame))
        self.take(link, frame, ack=Ack.SUCCESS)

    def _bind_without_login(self, link: Link, segment: I64, frame: U8) -> None:
        """The login is optional and this report came without: the link is the VIN's from here on."""
        reason, detail = self._vin_refusal(link, frame)
        if reason:
            self._turn_away(link, frame, reason, detail)
            segment[SEG_AT] += len(frame)
            return
        link.edition = EDITION_OF_MARK[int(frame[0])]
        identification = frame[AT_VIN:AT_ENCRYPTION].tobytes()
        self.bind(link, State.VEHICLE, identification, self.limits.idle_timeout_s, f"{_how(frame)}, no login")

    def _vin_refusal(self, link: Link, frame: U8) -> tuple[int, int]:
        """(reason, detail) for a frame whose VIN may not speak here, (0, 0) when it may."""
        if not vin_ok(frame, AT_VIN):
            return REASON["bad_vin"], AT_VIN
        vin = frame[AT_VIN:AT_ENCRYPTION].tobytes().rstrip(b"\0").decode("ascii")
        if self.certified(link, vin, required=self._certificate_required):
            return REASON["foreign_vin"], AT_VIN
        verdict = self.admission.verdict(vin)
        # while the registry cannot be read nobody is known; the terminal tries again after a minute
        return (0, 0) if verdict is Verdict.ADMITTED else (REASON["unknown_vin"], AT_VIN)

    def _platform_login(self, link: Link, frame: U8) -> None:
        reason, detail = 0, 0
        if not vin_ok(frame, AT_VIN):
            reason, detail = REASON["bad_vin"], AT_VIN
        elif frame[AT_ENCRYPTION] != Encryption.NONE:
            reason, detail = REASON["encrypted"], AT_ENCRYPTION
        elif len(frame) != AT_UNIT + _PLATFORM_LOGIN_UNIT + 1:
            reason, detail = REASON["structure"], AT_LENGTH
        else:
            user = frame[_USER].tobytes().rstrip(b"\0 ")
            password = frame[PASSWORD].tobytes().rstrip(b"\0 ")
            expected = self._users.get(user)
            # compared even for an unknown user, so that the time taken does not tell which users exist
            right = hmac.compare_digest(password, expected if expected is not None else b"\0")
            code = frame[AT_VIN:AT_ENCRYPTION].tobytes().rstrip(b"\0").decode("ascii")
            names = code, user.decode("ascii", "replace")
            if expected is None or not right or self.certified(link, *names, required=self._certificate_required):
                reason, detail = REASON["bad_login"], AT_UNIT + 8
        if reason:
            self._turn_away(link, frame, reason, detail)
            return
        self.unbind(link)
        self.rows.state[link.slot] = NEXT[Command.PLATFORM_LOGIN]
        self.meters.platform(link.slot)
        link.prove()
        code = frame[AT_VIN:AT_ENCRYPTION].tobytes().rstrip(b"\0").decode("ascii")
        if link.client != code:
            link.client = link.known_as = code
            self.events.tell(Event.CONNECTED, self.number, link=link, detail=f"{_how(frame)}, platform")
        self.alive(link, self.limits.idle_timeout_s)
        self.take(link, frame, ack=Ack.SUCCESS)

    def _logout(self, link: Link, frame: U8, command: int) -> None:
        identification = frame[AT_VIN:AT_ENCRYPTION].tobytes()
        if command == Command.LOGOUT and identification != self.rows.vin[link.slot].tobytes():
            self._refuse(link, frame, REASON["foreign_vin"], AT_VIN)
            return
        self.take(link, frame, ack=Ack.SUCCESS)
        self.unbind(link)
        self.rows.state[link.slot] = NEXT[Command(command)]
        self.alive(link, self.limits.idle_timeout_s)

    def _activate(self, link: Link, frame: U8) -> None:
        """Activation (2025, B.3.5): journaled, then answered by a command of its own, 0x0A (table B.4).

        Its information byte knows no other refusal than "VIN duplicated".
        """
        tree = decode_frame(frame.tobytes())
        body = tree["body"]
        if body is None:
            reason = "encrypted" if frame[AT_ENCRYPTION] != Encryption.NONE else "structure"
            self._refuse(link, frame, REASON[reason], AT_ENCRYPTION if reason == "encrypted" else AT_UNIT)
            return
        vin = str(body["vin"])
        older = self.by_vin.get(vin)
        verdict = self.admission.verdict(vin)
        cause = "activated"
        if self.gbt.activation is Activation.REFUSE or self.certified(link, vin, required=self._certificate_required):
            cause = "refused"
        elif verdict is not Verdict.ADMITTED:
            cause = "unknown_vin" if verdict is Verdict.UNKNOWN_VIN else "store_away"
        elif self.gbt.same_vin is SameVin.REFUSE and older not in (None, link):
            cause = "vin_in_use"
        self.take(link, frame)
        self.events.tell(Event.ACTIVATION, self.number, cause, link=link, vin=vin, detail=f"chip {body['chip_id']}")
        if cause == "store_away":
            return  # unanswered, the terminal asks again
        result = _ACTIVATED if cause == "activated" else _NOT_ACTIVATED
        identification = frame[AT_VIN:AT_ENCRYPTION].tobytes()
        answer = build_frame(25, Command.ACTIVATION_RESULT, Ack.COMMAND, identification, Encryption.NONE, result)
        self.intake.committer.filling.answer(link.slot, int(self.rows.serial[link.slot]), answer)

    def _answered(self, link: Link, frame: U8) -> None:
        """The answer to a command that was sent down.  One that nobody waits for is passed over, as any reply is."""
        if frame[AT_VIN:AT_ENCRYPTION].tobytes() == self.rows.vin[link.slot].tobytes() and self.answered(
            link, frame.tobytes()
        ):
            self.take(link, frame)
        elif frame[AT_ACK] == Ack.COMMAND:
            self._refuse(link, frame, REASON["unknown_command"], AT_COMMAND)

    def _turn_away(self, link: Link, frame: U8, reason: int, detail: int) -> None:
        """Refuse a login."""
        vin = frame[AT_VIN:AT_ENCRYPTION].tobytes().rstrip(b"\0").decode("ascii", "backslashreplace")
        self.turn_away(link, reason_name(reason), vin, _how(frame))
        self._refuse(link, frame, reason, detail, told=False)

    def _refuse(self, link: Link, frame: U8, reason: int, detail: int, told: bool = True) -> None:
        ack = int(self._errors[reason, int(frame[0] == _DOLLAR)])
        self.take(link, frame, reason, detail, ack, told)
        # an attempt was made: the peer has until the idle timeout to make a better one
        if self.rows.state[link.slot] == State.NEW:
            self.alive(link, self.limits.idle_timeout_s)

    # -- commands that go down -------------------------------------------------------------------
    def reachable(self, vin: str) -> Link | None:
        link = self.by_vin.get(vin)
        return link if link is not None and self.rows.state[link.slot] == State.VEHICLE else None

    def lower(self, link: Link, frame: bytes) -> None:
        link.write(frame)

    # -- endings -----------------------------------------------------------------------------------
    def left_over(self, link: Link) -> None:
        if link.carry:
            rest = np.frombuffer(bytearray(link.carry[:REFUSED_BYTES_MAX]), np.uint8)
            self.take(link, rest, REASON["bad_length"], min(AT_LENGTH, len(rest)))
            self.intake.forget(link)
            self.intake.committer.kick()

    def farewell(self, link: Link, cause: str, text: str) -> None:
        if cause == "slow_sender":
            self.left_over(link)  # what came of the frame is kept as bad_length
        self.end(link, cause, text)

    def shut_down(self, link: Link) -> None:
        self.end(link, "shutdown")


def _how(frame: U8) -> str:
    """How a connection speaks, for its events."""
    return f"GB/T 32960 edition {2000 + EDITION_OF_MARK[int(frame[0])]}"

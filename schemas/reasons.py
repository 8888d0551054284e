"""Why a frame is refused: one table, read by the gateway, the pipeline, the API and the documents.

A refused frame is a *dead letter*: it goes through the journal like any other, is acknowledged (so
that a poisonous frame does not come round for ever), counted, and kept with this reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason: ``code`` travels in the journal, ``name`` is what people see."""

    code: int
    name: str
    meaning: str
    remedy: str


ACCEPTED: Final = 0

REASONS: Final[tuple[Reason, ...]] = (
    Reason(1, "bad_bcc", "The check byte is not the XOR of the bytes from the command id on.",
           "Check the terminal's BCC (offsets 2 to 23+N) and the line it is sent over."),
    Reason(2, "bad_length", "The bytes end before, or go on after, the declared data unit.",
           "Check the data unit length (offset 22) against the bytes that are sent."),
    Reason(3, "garbage", "Bytes outside any frame: no start mark ## or $$ where one was due.",
           "Send frames back to back with nothing between them."),
    Reason(4, "oversize", "The frame or packet is larger than the listener allows.",
           "Split the report, or raise gateway.limits.frame_bytes_max."),
    Reason(5, "foreign_vin", "The frame speaks for a vehicle that this connection may not speak for.",
           "Publish under the connection's own VIN; a platform link logs in with 0x05 first."),
    Reason(6, "bad_vin", "The identification is not 17 printable ASCII characters (zero padding allowed).",
           "Send the VIN in ASCII, shorter codes padded with 0x00 on the right."),
    Reason(7, "unknown_vin", "The VIN is not in the registry, and the registry is an allowlist.",
           "Import the vehicle, or set gateway.registry = \"open\"."),
    Reason(8, "not_logged_in", "A report came before the login on this connection.",
           "Log in (0x01 or 0x05) first, or set gateway.gbt32960.login = \"optional\"."),
    Reason(9, "bad_time", "The collection time is not a date and time.",
           "Send year, month, day, hour, minute, second as plain binary, Beijing time."),
    Reason(10, "clock_future", "The collection time lies further in the future than the pipeline allows.",
           "Set the terminal's clock (time sync 0x08), or raise pipeline.clock_future_max_s."),
    Reason(11, "clock_past", "The collection time lies further in the past than the pipeline allows.",
           "Set the terminal's clock, or raise pipeline.clock_past_max_days for a planned back-fill."),
    Reason(12, "structure", "The data unit does not parse: no information block could be read.",
           "Compare with `nevstream decode`, which names the offset and the clause."),
    Reason(13, "unknown_command", "The command id is not one of the standard's uplink commands.",
           "Check the command id (offset 2) and the edition's start mark."),
    Reason(14, "encrypted", "The data unit is encrypted and no key is known for it.",
           "Send encryption 0x01 (none), or `nevstream keys add` and requeue."),
    Reason(15, "unknown_topic", "The MQTT topic is not one that vehicles publish to.",
           "Publish to nev/v1/{vin}/gbt32960, telemetry or bms."),
    Reason(16, "conflict", "Another frame with the same vehicle, time and kind but other content is stored.",
           "Check why the terminal sends two different reports for one second."),
    Reason(17, "bad_login", "A platform login (0x05) whose user name or password is wrong.",
           "Check gateway.gbt32960.platform_users against what the platform sends."),
    Reason(18, "vin_in_use", "A login while the same VIN is logged in on another connection, and that one stays.",
           "Find the other terminal with this VIN, or set gateway.gbt32960.same_vin = \"replace\"."),
    Reason(19, "decryption", "A key is known for the encrypted data unit, and it does not open it.",
           "Compare the vehicle's key with `nevstream keys list`, and mode and padding with the section [encryption]."),
    Reason(20, "signature", "The report's signature is not that of the vehicle's public key.",
           "Check the public key with `nevstream keys list`; encryption.signature = \"keep\" takes such ones, marked."),
    Reason(21, "bad_json", "Not JSON, not an object or an array of objects, or a sample without a readable time.",
           "Compare with `nevstream schema telemetry`; time is ISO 8601 with offset, or milliseconds since 1970."),
    Reason(22, "json_limit", "More nesting, samples or values in a JSON payload than the pipeline takes.",
           "Split the payload, or raise pipeline.json_*_max."),
    Reason(23, "poison", "Storing this frame raises an unexpected error, in this program or in the database.",
           "It is not the vehicle's fault: report the error with the frame, update, then requeue the letter."),
    Reason(24, "torn_record", "A record of the journal is not as it was written; the frame kept is the whole record.",
           "Check the database's disk (dmesg, SMART, PostgreSQL's log). Its frames were acknowledged: have the "
           "vehicles of that minute reissue them, or restore the journal from a replica."),
)  # fmt: skip

BY_CODE: Final = {reason.code: reason for reason in REASONS}
BY_NAME: Final = {reason.name: reason for reason in REASONS}
CODE: Final = {reason.name: reason.code for reason in REASONS}


def reason_name(code: int) -> str:
    """Name of a reason code; an unknown code (a newer journal) reads ``reason_<code>``."""
    found = BY_CODE.get(code)
    return found.name if found else f"reason_{code}"

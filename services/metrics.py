"""Every metric of nevstream in one file: name, kind, meaning, and what to do when it looks wrong.

Counters are raised once per batch, never per frame.  With several processes on one machine,
``PROMETHEUS_MULTIPROC_DIR`` (set by ``topology`` before workers start) lets any of them answer for all.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client import multiprocess as _multiprocess
from prometheus_client.registry import REGISTRY

# -- gateway ---------------------------------------------------------------------------------------
CONNECTIONS = Gauge(
    "nevstream_gateway_connections",
    "Open vehicle connections by door. A sudden fall: look at the network or a rolling restart.",
    ["door"],
    multiprocess_mode="livesum",
)
CONNECTIONS_REFUSED = Counter(
    "nevstream_gateway_connections_refused_total",
    "Connections ended by the gateway, by door and cause. `limit`: raise gateway.limits.connections_max.",
    ["door", "cause"],
)
BYTES_RECEIVED = Counter("nevstream_gateway_received_bytes_total", "Bytes read from vehicle sockets.", ["door"])
FRAMES_RECEIVED = Counter(
    "nevstream_gateway_frames_received_total", "Frames scanned off sockets, accepted ones.", ["door"]
)
FRAMES_REFUSED = Counter(
    "nevstream_gateway_frames_refused_total",
    "Frames refused at the door, by reason; each is kept as a dead letter (`nevstream dead-letters`), but for those of "
    "nevstream_gateway_frames_not_kept_total.",
    ["door", "reason"],
)
FRAMES_NOT_KEPT = Counter(
    "nevstream_gateway_frames_not_kept_total",
    "Refused frames of connections that had not said who they are, beyond what is kept of their address "
    "(gateway.limits.strangers_kept_per_s_max): answered and counted, no dead letter.",
    ["door", "reason"],
)
FRAMES_ACKED = Counter(
    "nevstream_gateway_frames_acked_total", "Frames made durable and, where the protocol has one, answered.", ["door"]
)
ACK_SECONDS = Histogram(
    "nevstream_gateway_ack_seconds",
    "Socket to acknowledgement, one observation per group commit (its oldest frame). "
    "Rising: the journal's disk is slow, see nevstream_journal_append_seconds.",
    ["door"],
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
IN_FLIGHT_BYTES = Gauge(
    "nevstream_gateway_in_flight_bytes",
    "Bytes received and not yet durable. Near gateway.limits.in_flight_bytes_max: sockets are being held back.",
    multiprocess_mode="livesum",
)
LIMITS_REACHED = Counter(
    "nevstream_gateway_limits_reached_total",
    "Times a limit of [gateway.limits] acted, by door and setting. What happens then: see the setting's description.",
    ["door", "limit"],
)
ACCEPTING = Gauge(
    "nevstream_gateway_accepting",
    "Gateway processes that take new connections, by listener. 0: stopped, draining, or out of file descriptors.",
    ["listener"],
    multiprocess_mode="livesum",
)
READING_PAUSED = Gauge(
    "nevstream_gateway_reading_paused",
    "Gateway processes that have stopped reading sockets because the journal is away or slow.",
    multiprocess_mode="livesum",
)
COMMANDS_SENT = Counter(
    "nevstream_gateway_commands_sent_total", "Commands sent down to vehicles, every attempt counted."
)
COMMANDS_ENDED = Counter(
    "nevstream_gateway_commands_ended_total",
    "Commands that left a gateway's hands, by state (answered, failed, queued = the connection broke first).",
    ["state"],
)
LINK_EVENTS = Counter(
    "nevstream_gateway_link_events_total",
    "Events of connections that were told (connected, refused, replaced, closed, will, error, activation).",
    ["event"],
)
LINK_EVENTS_DROPPED = Counter(
    "nevstream_gateway_link_events_dropped_total",
    "Events of connections beyond gateway.link_events_per_s_max: counted, not kept. Rising: what connects so often?",
)
# -- lag -------------------------------------------------------------------------------------------
LAG = Gauge(
    "nevstream_lag_seconds",
    "Age of the oldest frame that waits, by stage (gateway: for the journal; pipeline: to become a row) and cause: the "
    "one cause that holds now has the age, the others are 0. working: it is on its way. journal_away, store_away: "
    "look at PostgreSQL. journal_slow, store_slow: its disk. in_flight: more arrives than the journal takes.",
    ["stage", "cause"],
    multiprocess_mode="livemax",
)
LAG_CAUSES: Final = {
    "gateway": ("working", "journal_slow", "journal_away", "in_flight"),
    "pipeline": ("working", "store_slow", "store_away", "journal_away", "positions_moved", "halted"),
}
BRIDGE_CONNECTIONS = Gauge(
    "nevstream_gateway_bridge_connections",
    "Connections to the broker that are subscribed. Below gateway.bridge.connections x processes: see the log.",
    multiprocess_mode="livesum",
)
BRIDGE_RECONNECTS = Counter(
    "nevstream_gateway_bridge_reconnects_total",
    "Times a connection to the broker ended or could not be made, by cause; each is followed by another attempt.",
    ["cause"],
)
BRIDGE_LAST_MESSAGE = Gauge(
    "nevstream_gateway_bridge_last_message_seconds",
    "When the broker last sent a frame, in Unix time; time() minus it is its age.",
    multiprocess_mode="livemax",
)
BRIDGE_IN_FLIGHT = Gauge(
    "nevstream_gateway_bridge_in_flight",
    "Messages of the broker that wait for the journal, by connection. At gateway.bridge.receive_maximum the broker "
    "sends no more (MQTT 5).",
    ["connection"],
    multiprocess_mode="livesum",
)
# -- journal ---------------------------------------------------------------------------------------
APPEND_SECONDS = Histogram(
    "nevstream_journal_append_seconds",
    "One group commit to the journal. Rising: disk or database is slow.",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
APPENDED_BYTES = Counter("nevstream_journal_appended_bytes_total", "Bytes of journal records, as stored.")
APPEND_FAILURES = Counter(
    "nevstream_journal_append_failures_total", "Group commits that failed and are tried again. Look at the database."
)
JOURNAL_LOST = Counter(
    "nevstream_journal_lost_records_total",
    "Records that Kafka's retention removed before the pipeline had read them. Anything but 0 is a loss: raise the "
    "topic's retention, and find out why the pipeline was behind.",
)
# -- pipeline --------------------------------------------------------------------------------------
LAG_SECONDS = Gauge(
    "nevstream_pipeline_lag_seconds",
    "Age of the oldest frame that is durable and not yet a row. Rising: add pipeline processes, look at the database.",
    multiprocess_mode="livemax",
)
FRAMES_PROCESSED = Counter(
    "nevstream_pipeline_frames_total", "Frames taken from the journal and committed.", ["command"]
)
ROWS_WRITTEN = Counter("nevstream_pipeline_rows_total", "Telemetry rows committed.", ["path"])
DUPLICATES = Counter(
    "nevstream_pipeline_duplicates_total", "Reports that were already stored, byte for byte (resends); written once."
)
CONFLICTS = Counter(
    "nevstream_pipeline_conflicts_total",
    "Reports whose vehicle, time and kind are stored with other content. Check the terminal's clock or resending.",
)
DEAD_LETTERS = Counter(
    "nevstream_pipeline_dead_letters_total",
    "Frames kept as dead letters, by reason (`nevstream dead-letters`).",
    ["reason"],
)
DEAD_LETTERS_KEPT = Gauge(
    "nevstream_dead_letters_kept",
    "Dead letters in the store, as of the last pruning. Near dead_letters.rows_max: find out why, by reason.",
    multiprocess_mode="livemax",
)
DEAD_LETTERS_PRUNED = Counter(
    "nevstream_dead_letters_pruned_total",
    "Dead letters dropped for `age` or `size`; see dead_letters.age_max_days and dead_letters.rows_max.",
    ["cause"],
)
SIGNAL_FLAWS = Counter(
    "nevstream_pipeline_signal_flaws_total",
    "Signal values masked or marked, by signal and state (abnormal, invalid, out_of_range, suspect).",
    ["signal", "state"],
)
BATCH_SECONDS = Histogram(
    "nevstream_pipeline_batch_seconds",
    "Seconds per micro-batch and step (read, decode, build, commit).",
    ["step"],
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
PIPELINE_RESTARTS = Counter(
    "nevstream_pipeline_restarts_total", "Times a pipeline began again from the store, by cause.", ["cause"]
)
PIPELINE_HALTED = Gauge(
    "nevstream_pipeline_halted",
    "Pipeline processes that have stopped because more than pipeline.reject_share_max of the frames are refused. Find "
    "out why (`nevstream dead-letters list`), then restart them. Frames wait in the journal meanwhile.",
    multiprocess_mode="livesum",
)
SOCKET_TO_ROW_SECONDS = Histogram(
    "nevstream_pipeline_socket_to_row_seconds",
    "Arrival of a frame to its row being committed, one observation per batch (its oldest frame).",
    buckets=(0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
# -- alarms ----------------------------------------------------------------------------------------
ALARM_EVENTS = Counter(
    "nevstream_alarm_events_total",
    "News of alarm episodes (raised, changed, ended, withdrawn, acknowledged, closed).",
    ["event"],
)
ALARMS_OFFLINE = Counter(
    "nevstream_alarm_offline_total", "Offline episodes by what the offline rule did (raised, ended).", ["change"]
)
WEBHOOK_ATTEMPTS = Counter(
    "nevstream_webhook_attempts_total",
    "Attempts to send to a webhook, by outcome. retried: look at `nevstream alarms webhooks status`. "
    "dead: given up; `nevstream alarms webhooks retry` sends them anew.",
    ["hook", "outcome"],
)
WEBHOOK_SECONDS = Histogram(
    "nevstream_webhook_seconds",
    "One attempt, from resolving the name to the answer's status.",
    ["hook"],
    buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
ALARM_STREAM_CLIENTS = Gauge(
    "nevstream_alarm_stream_clients",
    "Clients of /v1/alarms/stream. Near alarms.stream_clients_max: more are refused.",
    multiprocess_mode="livesum",
)
API_REFUSED = Counter(
    "nevstream_api_refused_total",
    "Requests that the API refused by cause: no-token, bad-token (401), role, tenant (403). Many: somebody tries.",
    ["cause"],
)
AUDIT_LOST = Counter(
    "nevstream_audit_lost_total", "Changes that could not be written to the audit log; the log of the process has them."
)
# -- statistics ------------------------------------------------------------------------------------
STATISTICS_LAG_SECONDS = Gauge(
    "nevstream_statistics_lag_seconds",
    "Age of the oldest change that the statistics do not tell of yet. Far above statistics.every_s and rising: raise "
    "statistics.processes, look at the database, or wait for a rebuild to end.",
    multiprocess_mode="livemax",
)
STATISTICS_CHANGES = Gauge(
    "nevstream_statistics_changes", "Records of changes that wait for the statistics.", multiprocess_mode="livesum"
)
STATISTICS_VEHICLES = Counter(
    "nevstream_statistics_vehicles_total", "Visits to vehicles, by cause (regular, urgent).", ["cause"]
)
STATISTICS_RECORDS = Counter("nevstream_statistics_records_total", "Records folded, those of a visit again included.")
STATISTICS_DAYS = Counter(
    "nevstream_statistics_days_total", "Rows of vehicle_day written because something in them has changed."
)
STATISTICS_RESTARTS = Counter(
    "nevstream_statistics_restarts_total", "Times the statistics began again because the database was away."
)
STATISTICS_SECONDS = Histogram(
    "nevstream_statistics_seconds",
    "Seconds of one chunk of vehicles, by step (read and fold, swap).",
    ["step"],
    buckets=(0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)


def _multiprocess_registry(directory: str | Path) -> CollectorRegistry:
    registry = CollectorRegistry()
    _multiprocess.MultiProcessCollector(registry, path=str(directory))  # type: ignore[no-untyped-call]
    return registry


def exposition() -> bytes:
    """The metrics of all processes that share ``PROMETHEUS_MULTIPROC_DIR``, or of this one."""
    directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    return generate_latest(_multiprocess_registry(directory) if directory else REGISTRY)


def show_lag(stage: str, seconds: float, cause: str) -> None:
    """Say how long the oldest frame of ``stage`` has waited (0: none waits), and for what (a name of LAG_CAUSES)."""
    for name in LAG_CAUSES[stage]:
        LAG.labels(stage, name).set(seconds if name == cause else 0.0)


def shared() -> bool:
    """Whether this process is one of several on this machine that tell their metrics together."""
    return bool(os.environ.get("PROMETHEUS_MULTIPROC_DIR"))


def samples() -> dict[str, list[tuple[dict[str, str], float]]]:
    """Name of each sample → (labels, value), over all processes that share ``PROMETHEUS_MULTIPROC_DIR``."""
    directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in (_multiprocess_registry(directory) if directory else REGISTRY).collect():
        for sample in family.samples:
            found.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return found


def halted_pipelines() -> int:
    """How many pipelines on this machine have stopped by themselves."""
    directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if not directory:
        return int(REGISTRY.get_sample_value("nevstream_pipeline_halted") or 0)
    return int(totals(Path(directory)).get("nevstream_pipeline_halted", 0))


def totals(directory: Path) -> dict[str, float]:
    """Each sample summed over its labels and over all processes that write to ``directory``."""
    sums: dict[str, float] = {}
    for family in _multiprocess_registry(directory).collect():
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    return sums


def forget_process(pid: int, directory: Path) -> None:
    """Drop the live gauges of a process that has ended (its counters stay)."""
    if directory.is_dir():
        _multiprocess.mark_process_dead(pid, str(directory))  # type: ignore[no-untyped-call]

"""Every option of nevstream: typed, frozen, checked before any connection is opened.

Read once, from (first wins) command-line overrides, environment (``NEVSTREAM_GATEWAY__MQTT__PORT``),
and a TOML file (``nevstream.toml``, or ``--config``, or ``NEVSTREAM_CONFIG``).  The sample file that
``nevstream config`` prints is generated from the defaults below, so it cannot disagree with them.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from enum import StrEnum
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from schemas.gbt32960.scheme import (
    SM2_ID,
    CipherMode,
    KeyExchange,
    RsaPadding,
    RsaSignature,
    Scheme,
    SignatureHash,
    Sm2Form,
    UnitPadding,
)
from services.errors import SettingsError

if TYPE_CHECKING:
    from schemas.alarms import Hook
    from schemas.samples.split import Limits as SampleLimits

Port = Annotated[int, Field(ge=0, le=65535)]
DEFAULT_FILE = Path("nevstream.toml")
PREFIX = "NEVSTREAM_"


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Registry(StrEnum):
    OPEN = "open"
    ALLOWLIST = "allowlist"


class MqttAuth(StrEnum):
    OPEN = "open"
    PASSWORD = "password"  # noqa: S105 - the name of a policy
    CERTIFICATE = "certificate"
    TOKEN = "token"  # noqa: S105 - the name of a policy


class GbtAuth(StrEnum):
    OPEN = "open"
    CERTIFICATE = "certificate"


class ClientCertificate(StrEnum):
    NONE = "none"
    OPTIONAL = "optional"
    REQUIRED = "required"


class TlsVersion(StrEnum):
    V12 = "1.2"
    V13 = "1.3"


class BridgeCodec(StrEnum):
    GBT32960 = "gbt32960"
    TELEMETRY = "telemetry"
    BMS = "bms"


class BridgeVersion(StrEnum):
    AUTO = "auto"
    V5 = "5"
    V311 = "3.1.1"


class Login(StrEnum):
    REQUIRED = "required"
    OPTIONAL = "optional"


class AckPolicy(StrEnum):
    AFTER_DURABLE = "after-durable"
    ERRORS_ONLY = "errors-only"


class SameVin(StrEnum):
    REPLACE = "replace"
    REFUSE = "refuse"


class Activation(StrEnum):
    REGISTRY = "registry"
    REFUSE = "refuse"


class SignaturePolicy(StrEnum):
    KEEP = "keep"
    REQUIRE = "require"


class JournalKind(StrEnum):
    POSTGRES = "postgres"
    KAFKA = "kafka"
    MEMORY = "memory"


class KafkaCompression(StrEnum):
    NONE = "none"
    LZ4 = "lz4"
    ZSTD = "zstd"


class KafkaSecurity(StrEnum):
    PLAINTEXT = "plaintext"
    TLS = "tls"
    SASL_PLAINTEXT = "sasl-plaintext"
    SASL_TLS = "sasl-tls"


class SaslMechanism(StrEnum):
    PLAIN = "PLAIN"
    SCRAM_SHA_256 = "SCRAM-SHA-256"
    SCRAM_SHA_512 = "SCRAM-SHA-512"


class Idempotence(StrEnum):
    AUTO = "auto"
    REQUIRED = "required"


class TopicPolicy(StrEnum):
    CREATE = "create"
    CHECK = "check"


class Database(Section):
    dsn: SecretStr | None = Field(
        None,
        description="PostgreSQL to use, as a libpq URL. Unset: nevstream runs its own embedded PostgreSQL.",
        examples=["postgresql://nevstream@db.example/nevstream"],
    )
    data_dir: Path = Field(
        Path(".nevstream/pg"),
        description="Directory of the embedded PostgreSQL. When started as root and the path cannot be reached by an "
        "unprivileged user, /var/lib/nevstream/<digest of the path> is used instead, and said.",
    )
    port: Port = Field(0, description="TCP port of the embedded PostgreSQL on 127.0.0.1; 0 = unix socket only.")
    connect_timeout_s: float = Field(5.0, gt=0, description="Give up on one connection attempt after this long.")
    partitions_ahead_days: int = Field(3, ge=1, le=60, description="Day partitions made ahead of the current day.")


class Kafka(Section):
    brokers: str = Field(
        "127.0.0.1:9092", min_length=1, description="Brokers to ask first, host:port, several separated by commas."
    )
    topic: str = Field(
        "nevstream.frames",
        pattern=r"^[A-Za-z0-9._-]{1,249}$",
        description="Topic of the raw frames. Fixed when the database is first set up: its offsets are stored there.",
    )
    topic_policy: TopicPolicy = Field(
        TopicPolicy.CREATE,
        description="create: make the topic when it is missing. check: say so instead. Either way it is checked at "
        "every start, and what does not fit the settings below is refused, with the command that mends it.",
    )
    replication: int = Field(
        3, ge=1, le=32, description="Copies of each partition in a topic that is made. 1 for a single broker."
    )
    min_insync_replicas: int = Field(
        2,
        ge=1,
        le=32,
        description="Copies that must have a record before it is acknowledged (the topic's min.insync.replicas). "
        "With 1, what was acknowledged outlives a broker only if that has it on disk: a topic of one copy is made with "
        "flush.messages=1.",
    )
    retention_days: float = Field(
        7.0, gt=0, description="How long the topic must keep records. Longer than any outage, and than any replay."
    )
    message_bytes_max: int = Field(
        8 * 1024 * 1024,
        ge=1024 * 1024,
        le=64 * 1024 * 1024,
        description="Largest record (the topic's max.message.bytes). A partition's share of a group commit that is "
        "larger becomes several records.",
    )
    compression: KafkaCompression = Field(
        KafkaCompression.NONE,
        description="Compression on top of the journal's own: records are zstd already, so a second one rarely pays.",
    )
    idempotence: Idempotence = Field(
        Idempotence.AUTO,
        description="auto: an append whose answer was lost is there once if the broker can see to that; if not, the "
        "log says so, and it may be there twice (as duplicates). required: refuse such a broker.",
    )
    request_timeout_s: float = Field(
        10.0, ge=0.5, le=120, description="A broker that has not answered after this long is away."
    )
    group: str = Field("nevstream.pipeline", min_length=1, description="Consumer group of the pipeline processes.")
    member: str = Field(
        "",
        max_length=200,
        pattern=r"^[A-Za-z0-9._-]*$",
        description="This machine's name in the group (group.instance.id is NAME-pipeline-N): a process that "
        "comes back under its name within session_timeout_s gets its partitions back at once. "
        "Unset: the host's name.",
    )
    session_timeout_s: float = Field(
        30.0,
        ge=1,
        le=1800,
        description="A pipeline process that is silent this long loses its partitions to the others.",
    )
    client_id: str = Field(
        "nevstream", min_length=1, description="Prefix of the client ids that brokers log and limit."
    )
    security: KafkaSecurity = Field(KafkaSecurity.PLAINTEXT, description="How brokers are spoken to.")
    ca_file: str = Field(
        "", description="Authorities that the brokers' certificates are from, PEM. Empty: those the system believes."
    )
    cert_file: str = Field("", description="Certificate to show to brokers, PEM. Empty: none.")
    key_file: str = Field("", description="Its private key, PEM, not encrypted. Empty: in cert_file as well.")
    sasl_mechanism: SaslMechanism = Field(SaslMechanism.SCRAM_SHA_512, description="With sasl-plaintext and sasl-tls.")
    username: str = Field("", description="SASL user.")
    password: SecretStr = Field(
        SecretStr(""),
        description="SASL password; rather in NEVSTREAM_JOURNAL__KAFKA__PASSWORD or password_file than here.",
    )
    password_file: str = Field("", description="File that holds the SASL password; read at every start.")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.security in (KafkaSecurity.SASL_PLAINTEXT, KafkaSecurity.SASL_TLS):
            if not self.username:
                raise ValueError(f'security = "{self.security}" needs a username')
            if bool(self.password.get_secret_value()) == bool(self.password_file):
                raise ValueError(f'security = "{self.security}" needs one of password and password_file')
        if self.key_file and not self.cert_file:
            raise ValueError("key_file belongs to a cert_file")
        if self.min_insync_replicas > self.replication:
            raise ValueError(
                f"min_insync_replicas = {self.min_insync_replicas} of replication = {self.replication} copies: "
                "nothing could be appended"
            )
        return self


class Journal(Section):
    kind: JournalKind = Field(
        JournalKind.POSTGRES,
        description="postgres: a table in the database above. kafka: a topic, see journal.kafka. memory: nothing "
        "survives a restart, for tests only. Fixed when the database is first set up.",
    )
    partitions: int = Field(
        8,
        ge=1,
        le=4096,
        description="Partitions of the journal; a vehicle's frames always go to the same one. "
        "Fixed when the database is first set up: changing it later is refused.",
    )
    kafka: Kafka = Field(default_factory=lambda: Kafka(), description='With journal.kind = "kafka".')


class Limits(Section):
    connections_max: int = Field(60_000, ge=1, description="Open vehicle connections per process; more are refused.")
    frame_bytes_max: int = Field(
        65_556, ge=64, description="Largest GB/T 32960 frame. The standard's own limit is 65,556; larger is refused."
    )
    packet_bytes_max: int = Field(
        262_144, ge=128, le=268_435_455, description="Largest MQTT packet; a larger one ends the connection."
    )
    json_bytes_max: int = Field(
        262_144,
        ge=64,
        description="Largest JSON payload; a larger one is a dead letter (oversize), and the connection lives on.",
    )
    in_flight_bytes_max: int = Field(
        64 * 1024 * 1024,
        ge=1024 * 1024,
        description="Bytes received and not yet durable, per process. At the limit sockets are not read.",
    )
    idle_timeout_s: float = Field(
        300.0, gt=0, description="A GB/T connection that is silent this long is closed; MQTT uses 1.5 x keep-alive."
    )
    first_packet_timeout_s: float = Field(10.0, gt=0, description="CONNECT or login must arrive within this time.")
    packet_timeout_s: float = Field(
        60.0,
        gt=0,
        description="A packet or frame that has begun must be whole within this time, however its bytes trickle; else "
        "the connection is closed. Time in which the gateway does not read does not count.",
    )
    answer_timeout_s: float = Field(
        120.0,
        gt=0,
        description="A peer that does not take its answers is not read; after this long without, it is closed.",
    )
    handshake_timeout_s: float = Field(10.0, gt=0, description="A TLS handshake must be complete within this time.")
    handshakes_max: int = Field(
        1000,
        ge=1,
        description="TLS handshakes under way at once, per process. At the limit new ones wait in the kernel's queue, "
        "and the oldest is closed once it has taken more than 2 s.",
    )
    connections_per_address_max: int = Field(
        30_000,
        ge=0,
        description="Open connections from one address (of IPv6: one /64), per process; more are refused. 0: no limit. "
        "Many vehicles share an address behind a carrier's NAT, all of them behind a load balancer.",
    )
    connects_per_address_per_s_max: int = Field(
        500,
        ge=0,
        description="New connections per second from one address (of IPv6: one /64), 20 seconds' worth at once; more "
        "are refused. One that is ended for what it sent before it said who it is counts as 20, the next as 40, and "
        "so on, up to 10 seconds' worth, while no vehicle is let in from there. 0: no limit.",
    )
    connects_per_s_max: int = Field(
        500,
        ge=0,
        description="New connections per second and process. More are not refused: they wait in the kernel's queue. "
        "0: no limit.",
    )
    strangers_kept_per_s_max: int = Field(
        20,
        ge=0,
        description="Dead letters and events kept per second of connections of one address that have not said who they "
        "are, 10 seconds' worth at once, ten times as many of all addresses together. What goes beyond is answered and "
        "counted, and told in sum (nevstream_gateway_frames_not_kept_total). 0: no limit.",
    )
    unlimited_addresses: tuple[str, ...] = Field(
        (),
        description="Addresses or networks that the limits per address do not count: load balancers, platforms.",
        examples=["10.0.0.0/8"],
    )
    bytes_per_s_max: int = Field(
        256 * 1024,
        ge=0,
        description="Bytes per second of one vehicle, 5 seconds' worth at once. Beyond it its socket is not read for a "
        "while: nothing is lost, its sender slows down. 0: no limit. Platform links have none.",
    )
    frames_per_s_max: int = Field(
        500,
        ge=0,
        description="Frames and other packets per second of one vehicle; as bytes_per_s_max.",
    )
    refused_bytes_max: int = Field(
        1024 * 1024,
        ge=65_556,
        description="Bytes of refused frames and garbage in a row, without a good frame between, after which a "
        "connection is closed; 1/64 of it before it has said who it is.",
    )

    @field_validator("unlimited_addresses")
    @classmethod
    def _are_networks(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for one in given:
            try:
                ip_network(one)
            except ValueError as error:
                raise ValueError(f"{one!r} is not an address or network such as 10.0.0.0/8 ({error})") from None
        return given


class Tls(Section):
    """Certificates of a listener.  Files are looked at every 5 s and read again when they have changed."""

    cert_file: str = Field("", description="Certificate chain, PEM. Empty: no TLS. `nevstream certs dev` makes one.")
    key_file: str = Field("", description="Its private key, PEM, not encrypted. Empty: in cert_file as well.")
    minimum: TlsVersion = Field(TlsVersion.V12, description="Oldest TLS version that is spoken.")
    client_certificate: ClientCertificate = Field(
        ClientCertificate.NONE,
        description="Certificates of clients. optional: who presents one must be whom it names. required: everybody "
        "must present one. Names are the subject's CN and alternative names (DNS, or URI urn:vin:...).",
    )
    client_ca_file: str = Field("", description="Authorities whose client certificates are believed, PEM.")

    @property
    def enabled(self) -> bool:
        return bool(self.cert_file)


class MqttTls(Tls):
    port: Port = Field(8883, description="TCP port of MQTT over TLS.")


class GbtTls(Tls):
    port: Port = Field(32961, description="TCP port of GB/T 32960 over TLS.")


class MqttDoor(Section):
    enabled: bool = Field(True, description="Listen for MQTT.")
    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for all.")
    port: Port = Field(1883, description="TCP port.")
    plain: bool = Field(True, description="Listen in the clear on port. false: on the TLS port only.")
    auth: MqttAuth = Field(
        MqttAuth.OPEN,
        description="open: the client id or username names the VIN. password: username = VIN and its password "
        "(set with `nevstream vehicles set-password`). certificate: TLS with a client certificate that names the VIN. "
        "token: a JWT in the password, signed by a key of tokens_file, whose sub is the VIN.",
    )
    tokens_file: str = Field(
        "",
        description="Keys of auth = token: a JWKS, or public keys or certificates in PEM (several: the old and the "
        "new one while they are rotated). HS256, RS256 and ES256. Looked at every 5 s.",
    )
    tokens_audience: str = Field("", description="What aud of a token must be or have. Empty: it is not looked at.")
    tokens_leeway_s: float = Field(30.0, ge=0, le=600, description="How far clocks may differ for exp and nbf.")
    keep_alive_max_s: int = Field(
        1200, ge=5, le=65535, description="Longest keep-alive granted (MQTT 5 tells the client; 3.1.1 is held to it)."
    )
    receive_maximum: int = Field(
        1000, ge=1, le=65535, description="QoS 1 messages a client may have un-acked (MQTT 5)."
    )
    tls: MqttTls = Field(default_factory=lambda: MqttTls(), description="MQTT over TLS.")


class GbtDoor(Section):
    enabled: bool = Field(True, description="Listen for GB/T 32960 over TCP.")
    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for all.")
    port: Port = Field(32960, description="TCP port.")
    plain: bool = Field(True, description="Listen in the clear on port. false: on the TLS port only.")
    auth: GbtAuth = Field(
        GbtAuth.OPEN,
        description="open: the login names the VIN. certificate: TLS with a client certificate that names the VIN, or "
        "the user of a platform.",
    )
    login: Login = Field(
        Login.REQUIRED, description="required: a report before the login is refused. optional: it is taken."
    )
    ack: AckPolicy = Field(
        AckPolicy.AFTER_DURABLE,
        description="after-durable: every frame is answered once it is on disk. errors-only: good reports are not "
        "answered, as annex B of the standard has it for terminals.",
    )
    same_vin: SameVin = Field(
        SameVin.REPLACE,
        description="A login while the VIN is logged in on another connection. replace: the older one is closed, as "
        "the standard has it. refuse: the newer one is answered with 0x03, until the older one ends.",
    )
    activation: Activation = Field(
        Activation.REGISTRY,
        description="Activation of a terminal (0x09, edition 2025). registry: succeeds when the VIN may log in. "
        "refuse: always fails.",
    )
    check_secrets: bool = Field(
        False,
        description="Judge encrypted and signed frames before they are answered: 0x07 when no known key opens them, "
        "0x05 when the signature is wrong (edition 2025; 2016 has 0x02) and encryption.signature is require. It costs "
        "milliseconds per such frame. Off: they are answered as good, and the pipeline keeps them as dead letters.",
    )
    platform_users: Mapping[str, SecretStr] = Field(
        default_factory=dict,
        description="User name = password of platforms that may log in with 0x05. Empty: platform logins are refused.",
    )
    tls: GbtTls = Field(default_factory=lambda: GbtTls(), description="GB/T 32960 over TLS.")


class Commands(Section):
    enabled: bool = Field(True, description="Send commands (`nevstream command`) down to vehicles.")
    poll_s: float = Field(1.0, gt=0, description="How often a gateway process looks for queued commands.")
    resend_s: float = Field(
        60.0, gt=0, description="A command that is not answered goes out again after this long (annex B: a minute)."
    )
    attempts_max: int = Field(3, ge=1, le=100, description="A command ends after so many attempts (annex B: three).")
    in_flight_max: int = Field(1000, ge=1, description="Commands that a process waits for; one per vehicle at most.")
    expires_s: float = Field(
        86_400.0, gt=0, description="A command that could not be sent for this long expires, unless it says otherwise."
    )
    age_max_days: int = Field(90, ge=1, description="Commands that ended and are older are dropped.")


class Bridge(Section):
    """nevstream as a client of a broker that vehicles publish to already."""

    url: str = Field(
        "",
        description="The broker, as mqtt://HOST[:1883] or mqtts://HOST[:8883] (TLS). Empty: no bridge.",
    )
    username: str = Field("", description="User name at the broker. Empty: none is sent.")
    password: SecretStr = Field(SecretStr(""), description="Password at the broker. Empty: password_file.")
    password_file: str = Field(
        "", description="File that holds the password; read at every connection, so it can be changed at any time."
    )
    client_id: str = Field(
        "nevstream",
        pattern=r"^[0-9A-Za-z_.-]{1,100}$",
        description="Prefix of the client identifiers; -PROCESS-CONNECTION is added. The broker keeps what could not "
        "be delivered under it: keep it over restarts, and give each machine its own.",
    )
    connections: int = Field(
        1, ge=1, le=64, description="Connections per gateway process. More than one needs MQTT 5 and share."
    )
    share: str = Field(
        "nevstream",
        pattern=r"^[^/+#]{0,100}$",
        description="Group of the shared subscription ($share/GROUP/...): each message goes to one of its members. "
        "Empty, or a broker that speaks 3.1.1 only: one connection of the first process subscribes.",
    )
    topics: Mapping[str, BridgeCodec] = Field(
        # written out, because the module that spells topics brings numpy along; a test holds them against it
        default_factory=lambda: {
            "nev/v1/{vin}/gbt32960": BridgeCodec.GBT32960,
            "nev/v1/{vin}/telemetry": BridgeCodec.TELEMETRY,
            "nev/v1/{vin}/bms": BridgeCodec.BMS,
        },
        min_length=1,
        max_length=16,
        description="What to subscribe to, and how payloads are read: topic = gbt32960, telemetry or bms. {vin} is the "
        "level that names the vehicle; + and # stand for others.",
    )
    qos: int = Field(1, ge=0, le=2, description="QoS of the subscription. At 0 what is sent while we are away is lost.")
    version: BridgeVersion = Field(
        BridgeVersion.AUTO, description="MQTT version. auto: 5, and 3.1.1 when the broker does not speak it."
    )
    session_expiry_s: int = Field(
        86_400, ge=0, le=0xFFFF_FFFF, description="How long the broker is asked to keep messages while we are away (5)."
    )
    receive_maximum: int = Field(
        2000, ge=1, le=65535, description="Messages that a connection may have un-acknowledged (MQTT 5)."
    )
    keep_alive_s: int = Field(60, ge=2, le=65535, description="A broker that is silent 1.5 times as long is given up.")
    connect_timeout_s: float = Field(10.0, gt=0, description="Connection, TLS and CONNACK must each come within it.")
    retry_first_s: float = Field(0.5, gt=0, description="Pause after a lost connection; it doubles, and jitters.")
    retry_max_s: float = Field(60.0, gt=0, description="The longest pause between two attempts.")
    ca_file: str = Field(
        "", description="Authorities that the broker's certificate is from, PEM. Empty: those the system believes."
    )
    cert_file: str = Field("", description="Certificate to show to the broker, PEM. Empty: none.")
    key_file: str = Field("", description="Its private key, PEM, not encrypted. Empty: in cert_file as well.")

    @property
    def enabled(self) -> bool:
        return bool(self.url)

    @property
    def tls(self) -> bool:
        return urlsplit(self.url).scheme == "mqtts"

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the broker."""
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or (8883 if self.tls else 1883)

    @field_validator("url")
    @classmethod
    def _names_a_broker(cls, url: str) -> str:
        try:
            parts = urlsplit(url)
            good = parts.scheme in ("mqtt", "mqtts") and parts.hostname and (parts.port is None or parts.port > 0)
        except ValueError:
            good = False
        if url and not good:
            raise ValueError("give mqtt://HOST:PORT or mqtts://HOST:PORT")
        if url and (parts.username is not None or parts.path.strip("/") or parts.query or parts.fragment):
            raise ValueError("give host and port alone; user name and password are settings of their own")
        return url

    @field_validator("topics")
    @classmethod
    def _name_vehicles(cls, topics: Mapping[str, BridgeCodec]) -> Mapping[str, BridgeCodec]:
        for topic in topics:
            levels = topic.split("/")
            if levels.count("{vin}") != 1:
                raise ValueError(f"{topic!r}: one level must be {{vin}}, as in fleet/{{vin}}/up")
            if "#" in levels[:-1] or any(len(one) > 1 and set(one) & set("+#\0") for one in levels):
                raise ValueError(f"{topic!r}: + and # stand for whole levels, # for the last ones only")
            if topic.startswith("$"):
                raise ValueError(f"{topic!r}: give the topic without $share, the group is gateway.bridge.share")
            if len(topic.encode()) > 1000:
                raise ValueError(f"{topic[:40]!r}...: longer than 1000 bytes")
        return topics

    @model_validator(mode="after")
    def _is_whole(self) -> Bridge:
        if (self.password.get_secret_value() or self.password_file) and not self.username:
            raise ValueError("a password without username")
        if (self.ca_file or self.cert_file) and self.url and not self.tls:
            raise ValueError("certificates are for mqtts://, the url is mqtt://")
        if self.key_file and not self.cert_file:
            raise ValueError("key_file without cert_file")
        return self


class Gateway(Section):
    processes: int = Field(
        0,
        ge=0,
        le=64,
        description="Gateway processes sharing the ports (SO_REUSEPORT). 0: one for every four cores, 1 to 8 of them.",
    )
    registry: Registry = Field(
        Registry.OPEN, description="open: any well-formed VIN may send. allowlist: only vehicles in the registry."
    )
    registry_refresh_s: float = Field(5.0, gt=0, description="How often the allowlist is read again.")
    link_events_per_s_max: int = Field(
        200,
        ge=0,
        description="Events of connections (connected, refused, replaced, closed, errors) kept per second and process; "
        "the rest is counted in a metric. 0: none.",
    )
    mqtt: MqttDoor = Field(default_factory=lambda: MqttDoor(), description="")
    gbt32960: GbtDoor = Field(default_factory=lambda: GbtDoor(), description="")
    bridge: Bridge = Field(
        default_factory=lambda: Bridge(),
        description="A broker that vehicles publish to already: nevstream takes their frames from there.",
    )
    commands: Commands = Field(default_factory=lambda: Commands(), description="")
    limits: Limits = Field(default_factory=lambda: Limits(), description="")


class Pipeline(Section):
    processes: int = Field(
        0,
        ge=0,
        le=64,
        description="Pipeline processes, which share the journal. 0: one for every two cores, 1 to 8, "
        "no more than the journal has partitions.",
    )
    batch_bytes_max: int = Field(
        8 * 1024 * 1024, ge=65536, description="Journal bytes per micro-batch. Larger is faster and later."
    )
    batch_frames_max: int = Field(
        20_000,
        ge=1,
        description="Frames per micro-batch, whatever their size. Bounds the pipeline's memory, about 3 kB a frame.",
    )
    idle_sleep_ms: float = Field(
        20.0, gt=0, description="Pause after finding the journal empty. Lower is more queries, higher is later rows."
    )
    reject_share_max: float = Field(
        0.5,
        gt=0,
        le=1,
        description="When more than this share of the newest reject_window_frames are refused by the pipeline, it "
        "stops and says so (log, metric, /readyz) instead of making dead letters of a whole fleet; nothing is lost, "
        "frames wait in the journal. Restart it once the cause is gone. What the doors refuse does not count, nor "
        "what is requeued; one vehicle counts for a tenth of the frames at most, and nothing stops while more vehicles "
        "have good reports than are refused. 1 = never.",
    )
    reject_window_frames: int = Field(
        10_000, ge=100, description="Newest frames that reject_share_max is about; with fewer the pipeline never stops."
    )
    clock_future_max_s: int = Field(
        300, ge=0, description="A report dated further ahead of its arrival is a dead letter (clock_future)."
    )
    clock_past_max_days: int = Field(
        30, ge=1, description="A report dated further back is a dead letter (clock_past). Raise it for back-fills."
    )
    json_depth_max: int = Field(
        8, ge=3, le=60, description="Nesting within a JSON sample; a payload with more is a dead letter (json_limit)."
    )
    json_samples_max: int = Field(
        500, ge=1, le=500, description="Samples in a JSON payload; one with more is a dead letter (json_limit)."
    )
    json_values_max: int = Field(
        10_000, ge=1, le=60_000, description="Values in a JSON sample; one with more is a dead letter (json_limit)."
    )
    signals_file: Path | None = Field(
        None,
        description="Signals of your own: a TOML file that says what custom blocks, CAN frames in them (with a DBC) "
        "and extra JSON fields mean. Check it with `nevstream signals check`; the API reads it as well.",
        examples=["signals.toml"],
    )

    def json_limits(self) -> SampleLimits:
        """The bounds of JSON payloads as the decoder takes them."""
        from schemas.samples.split import Limits as SampleLimits

        return SampleLimits(self.json_depth_max, self.json_samples_max, self.json_values_max)


class Encryption(Section):
    """Defaults are what a terminal's crypto library does when nothing is asked of it; the standard says nothing."""

    mode: CipherMode = Field(
        CipherMode.ECB,
        description="Mode of AES and SM4. UNCONFIRMED: the standard names none; ask the terminal's maker. "
        "cbc-iv-first: the data unit begins with the 16-byte initial vector.",
    )
    iv: str = Field(
        "00" * 16, pattern="^[0-9a-fA-F]{32}$", description="Initial vector of mode cbc, 32 hex digits. UNCONFIRMED."
    )
    padding: UnitPadding = Field(
        UnitPadding.PKCS7,
        description="Padding of AES and SM4. UNCONFIRMED. zero: what it adds is not taken off again (a data unit may "
        "end in zeros of its own) and is kept as an unknown block.",
    )
    rsa: RsaPadding = Field(
        RsaPadding.PKCS1, description="Padding of RSA; a longer data unit is block after block. UNCONFIRMED."
    )
    sm2: Sm2Form = Field(
        Sm2Form.C1C3C2, description="Order of an SM2 ciphertext (GM/T 0009: c1c3c2; older: c1c2c3). UNCONFIRMED."
    )
    key_exchange: KeyExchange = Field(
        KeyExchange.PLAIN,
        description="What protects the key in a 0x0B frame (edition 2025). UNCONFIRMED. rsa, sm2: it is encrypted for "
        "the platform, whose private key `nevstream keys add --platform` has.",
    )
    signature: SignaturePolicy = Field(
        SignaturePolicy.KEEP,
        description="A 2025 report whose signature is not that of the public key known for its vehicle. keep: stored "
        "with the note signature_bad. require: a dead letter. Reports without signature or without a known key are "
        "stored either way.",
    )
    signature_rsa: RsaSignature = Field(RsaSignature.PKCS1, description="Padding of RSA signatures. UNCONFIRMED.")
    signature_hash: SignatureHash = Field(
        SignatureHash.SHA256, description="Hash of RSA and ECC signatures; SM2 is always with SM3. UNCONFIRMED."
    )
    signature_sm2_id: str = Field(
        SM2_ID,
        max_length=1000,
        description="The signer's identity of SM2 signatures, GM/T 0009's. UNCONFIRMED.",
    )
    master_key: SecretStr = Field(
        SecretStr(""),
        description="Encrypts the keys in the database: 64 hex digits (openssl rand -hex 32). Empty: master_key_file.",
    )
    master_key_file: str = Field(
        "", description="File that holds the master key. Empty, and master_key too: keys are stored in the clear."
    )
    refresh_s: float = Field(5.0, gt=0, description="How often the pipeline asks whether keys were added or removed.")

    def scheme(self) -> Scheme:
        """These choices as the codec takes them."""
        return Scheme(
            mode=self.mode,
            iv=bytes.fromhex(self.iv),
            padding=self.padding,
            rsa=self.rsa,
            sm2=self.sm2,
            key_exchange=self.key_exchange,
            sm2_id=self.signature_sm2_id.encode(),
            rsa_signature=self.signature_rsa,
            signature_hash=self.signature_hash,
        )


class WebAuth(StrEnum):
    OPEN = "open"
    TOKEN = "token"  # noqa: S105 - the name of a policy


class Web(Section):
    host: str = Field("127.0.0.1", description="Address of the HTTP API.")
    port: Port = Field(8080, description="TCP port of the HTTP API.")
    tls: Tls = Field(default_factory=lambda: Tls(), description="HTTPS on web.port, instead of HTTP.")
    rows_max: int = Field(10_000, ge=1, description="Most rows in one page of telemetry.")
    ready_lag_max_s: float = Field(
        300.0, gt=0, description="`/readyz` says no while a frame has waited longer than this to become a row."
    )
    auth: WebAuth = Field(
        WebAuth.OPEN,
        description="open: whoever reaches the API may read everything. token: every request needs a token "
        "(`nevstream tokens add`) with a role and, for tenants, fleets; use TLS with it.",
    )
    allow_changes: bool = Field(
        True,
        description="Take requests that change something (requeue a dead letter). With auth = token from those whose "
        "token allows it. With auth = open only from this machine: nobody knows who is asking, so a request from "
        "another address is refused, and so is every one while web.host is not a loopback address.",
    )
    body_bytes_max: int = Field(
        1024 * 1024,
        ge=1024,
        description="Longest body of a request; a longer one is answered with 413. A sheet of vehicles or models may "
        "have 64 MiB, whatever this is.",
    )
    audit_age_max_days: int = Field(
        730, ge=1, description="Entries of the audit log (what was changed by whom) that are older are dropped."
    )


class DeadLetters(Section):
    age_max_days: int = Field(90, ge=1, description="Dead letters that arrived longer ago are dropped, and counted.")
    rows_max: int = Field(
        1_000_000, ge=1, description="Most dead letters that are kept; beyond it the oldest are dropped, and counted."
    )
    prune_every_s: float = Field(600.0, gt=0, description="How often the first pipeline process looks for them.")


class LinkEvents(Section):
    age_max_days: int = Field(90, ge=1, description="Events of connections that are older are dropped.")
    prune_every_s: float = Field(600.0, gt=0, description="How often the first pipeline process looks for them.")


class DataQuality(Section):
    count_every_s: float = Field(
        900.0,
        gt=0,
        description="How often the first pipeline process counts flawed signals again, for the days that have changed. "
        "A day is read whole, up to 20 s per million reports; counting takes at most a fifth of the time.",
    )


class WebhookTargets(StrEnum):
    ANY = "any"
    PUBLIC = "public"


class AlarmEvent(StrEnum):
    RAISED = "raised"
    CHANGED = "changed"
    ENDED = "ended"
    WITHDRAWN = "withdrawn"
    ACKNOWLEDGED = "acknowledged"
    CLOSED = "closed"


class Webhook(Section):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$", description="Names it in status and metrics; keep it.")
    url: SecretStr = Field(description="http or https. Masked like a secret, because it often holds one.")
    secret: SecretStr = Field(description="Key of the HMAC-SHA256 signature, 16 characters or more.")
    min_level: int = Field(1, ge=0, le=3, description="Alarms below this level are not sent.")
    events: tuple[AlarmEvent, ...] = Field(tuple(AlarmEvent), min_length=1, description="What is sent.")
    fleets: tuple[str, ...] = Field((), description="Only vehicles of these fleets. Empty: all.")
    models: tuple[str, ...] = Field((), description="Only vehicles of these models. Empty: all.")

    @field_validator("url")
    @classmethod
    def _can_be_sent_to(cls, url: SecretStr) -> SecretStr:
        try:
            parts = urlsplit(url.get_secret_value())
            good = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
        except ValueError:
            good = False
        if not good:
            raise ValueError("give a URL that begins with http:// or https:// and has a host")
        if parts.username is not None or parts.fragment:
            raise ValueError("give a URL without user, password and fragment: the signature says who is calling")
        return url

    @field_validator("secret")
    @classmethod
    def _is_long_enough(cls, secret: SecretStr) -> SecretStr:
        if len(secret.get_secret_value()) < 16:
            raise ValueError("give 16 characters or more, such as the output of openssl rand -hex 32")
        return secret


class Alarms(Section):
    acknowledge_target_min: float = Field(
        15.0, gt=0, description="An episode is to be acknowledged so many minutes after its start [C]."
    )
    close_target_working_days: int = Field(
        10, ge=1, le=250, description="And closed within so many working days, Monday to Friday, holidays too [C]."
    )
    offline_after_h: float = Field(
        168.0,
        gt=0,
        description="A registered vehicle from which nothing has come for so long is offline (an episode of source "
        "absence). Not those that are retired, nor those that report changes only (registry: upload on_change).",
    )
    offline_check_every_s: float = Field(
        300.0, gt=0, description="How often the first pipeline process looks for vehicles that are offline."
    )
    offline_grace_s: float = Field(
        1800.0,
        ge=0,
        description="After a pause of the platform itself, so long passes before vehicles are called offline again.",
    )
    publish_every_s: float = Field(
        1.0, gt=0, description="How often the first pipeline process looks for news of alarms and sends webhooks."
    )
    events_age_max_days: int = Field(
        90, ge=1, description="News of alarms (the stream, webhooks) that are older are dropped; episodes are kept."
    )
    stream_clients_max: int = Field(100, ge=1, description="Clients of /v1/alarms/stream at once; more are refused.")
    webhook_targets: WebhookTargets = Field(
        WebhookTargets.ANY,
        description="Addresses that webhooks may be sent to. public: only those of the internet. any: those of this "
        "network and machine, too. Link-local addresses, where clouds keep their credentials, are refused always.",
    )
    webhook_ca_file: str = Field(
        "", description="PEM file of the authorities that receivers' certificates are from. Empty: the public ones."
    )
    webhook_timeout_s: float = Field(10.0, gt=0, le=120, description="An attempt that takes longer has failed.")
    webhook_concurrency: int = Field(4, ge=1, le=64, description="Attempts at once, per webhook.")
    webhook_retry_first_s: float = Field(
        5.0, gt=0, description="Wait after the first failed attempt; it doubles with each further one."
    )
    webhook_retry_max_s: float = Field(900.0, gt=0, description="The longest wait between two attempts.")
    webhook_attempts_max: int = Field(100, ge=1, description="A delivery is given up after so many attempts.")
    webhook_age_max_h: float = Field(24.0, gt=0, description="And when it is older than this.")
    webhook_news_max_h: float = Field(
        48.0,
        gt=0,
        description="Alarms that were over longer ago than this when they were found (late data, a rebuild) are not "
        "sent to webhooks.",
    )
    webhooks: tuple[Webhook, ...] = Field(
        (),
        max_length=50,
        description="Whom to tell of alarms: tables with name, url, secret, min_level (1), events (raised, changed, "
        "ended, withdrawn, acknowledged, closed; default all), fleets and models (default all). "
        "In a file: [[alarms.webhooks]]. Try them with `nevstream alarms webhooks test`.",
    )

    @field_validator("webhooks")
    @classmethod
    def _have_names_of_their_own(cls, hooks: tuple[Webhook, ...]) -> tuple[Webhook, ...]:
        names = [hook.name for hook in hooks]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two webhooks are named {', '.join(twice)}")
        return hooks

    def hooks(self) -> list[Hook]:
        """The webhooks as the outbox knows them."""
        from schemas.alarms import Hook

        return [
            Hook(hook.name, hook.min_level, frozenset(hook.events), frozenset(hook.fleets), frozenset(hook.models))
            for hook in self.webhooks
        ]


class Statistics(Section):
    processes: int = Field(
        1, ge=1, le=8, description="Statistics processes; the vehicles are dealt to them, by id in eight shares."
    )
    every_s: float = Field(
        30.0,
        gt=0,
        description="How often statistics follow what was stored. Vehicles that may have an alarm are visited within "
        "seconds all the same. Lower is fresher and costs more: a visit reads two minutes of telemetry again.",
    )
    reorder_s: int = Field(
        120,
        ge=0,
        le=3600,
        description="Disorder that costs nothing: a report that is older than the newest by more than this makes its "
        "local day be computed again.",
    )
    fleet_every_s: float = Field(
        60.0,
        gt=0,
        description="How often the fleet's figures follow the vehicles' days; at least four times as long as it took.",
    )
    alarm_rules: Mapping[str, Mapping[str, float]] = Field(
        default_factory=dict,
        description="Your own values of the platform's alarm rules, e.g. { temperature_high = { threshold = 50, "
        "clear = 48 } }; `nevstream alarms rules` lists rules and values. A change computes all alarms again. What "
        "is set below the built-in values is found with the regular visits, not within seconds.",
    )

    @field_validator("alarm_rules")
    @classmethod
    def _rules_that_are_there(cls, given: Mapping[str, Mapping[str, float]]) -> Mapping[str, Mapping[str, float]]:
        from schemas.statistics.rules import rule_array  # numpy comes with it, and most commands need none

        rule_array(given)
        return given


class Credits(Section):
    rules_file: Path | None = Field(
        None,
        description="Rules of the dual credit by accounting year, a TOML file in place of the built-in table. "
        "`nevstream credits rules --toml` prints that one to start from; --check FILE checks yours.",
        examples=["credit-rules.toml"],
    )


class Settings(Section):
    """All sections.  ``Settings.read()`` is the way in for people, ``Settings.model_validate`` for programs."""

    runtime_dir: Path = Field(
        Path(".nevstream/run"), description="Where processes keep their metrics files and sockets; made when missing."
    )
    time_zone: str = Field("Asia/Shanghai", description="The fleet's local time: days of statistics begin here.")
    database: Database = Field(default_factory=lambda: Database(), description="PostgreSQL, embedded or given.")
    journal: Journal = Field(default_factory=lambda: Journal(), description="The durable log of raw frames.")
    gateway: Gateway = Field(default_factory=lambda: Gateway(), description="The doors vehicles connect to.")
    pipeline: Pipeline = Field(default_factory=lambda: Pipeline(), description="Journal to rows.")
    encryption: Encryption = Field(
        default_factory=lambda: Encryption(), description="Encrypted data units, signatures, and the keys for both."
    )
    dead_letters: DeadLetters = Field(
        default_factory=lambda: DeadLetters(), description="Frames that could not become rows: how many are kept."
    )
    link_events: LinkEvents = Field(
        default_factory=lambda: LinkEvents(), description="What happened to connections: how long it is kept."
    )
    data_quality: DataQuality = Field(
        default_factory=lambda: DataQuality(), description="Counts of signals that are not what they should be."
    )
    alarms: Alarms = Field(
        default_factory=lambda: Alarms(), description="Alarms as people use them: targets, offline vehicles, webhooks."
    )
    statistics: Statistics = Field(
        default_factory=lambda: Statistics(), description="Trips, charges, battery, alarms, days: how they are kept."
    )
    credits: Credits = Field(default_factory=lambda: Credits(), description="Estimates of the dual credit (双积分).")
    web: Web = Field(default_factory=lambda: Web(), description="HTTP API.")

    @classmethod
    def read(cls, path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
        """Settings from file, environment and ``overrides`` ({"gateway": {"mqtt": {"port": 0}}}).

        ``path`` None means $NEVSTREAM_CONFIG, else ``nevstream.toml`` when it is there, else defaults.
        Raises ``SettingsError`` naming every setting that is wrong.
        """
        named = path or (Path(given) if (given := os.environ.get("NEVSTREAM_CONFIG")) else None)
        file = named or DEFAULT_FILE
        values: dict[str, Any] = {}
        if named or file.exists():
            try:
                values = tomllib.loads(file.read_text("utf-8"))
            except OSError as error:
                raise SettingsError(
                    f"settings file {file}: {error.strerror}; make one with `nevstream config > {file}`"
                ) from error
            except tomllib.TOMLDecodeError as error:
                raise SettingsError(f"settings file {file}: {error}") from error
        try:
            return cls.model_validate(_merged(_merged(values, _environment(os.environ)), overrides or {}))
        except ValidationError as error:
            lines = "\n".join(_mistake(dict(e)) for e in error.errors())
            # the chain would carry the values themselves, secrets included
            raise SettingsError(f"these settings are wrong (`nevstream config` shows every one):\n{lines}") from None


_SECRET_OPTIONS = {"dsn", "platform_users", "master_key", "webhooks", "password", "bridge", "kafka"}


def _mistake(error: Mapping[str, Any]) -> str:
    """One wrong setting in a line; the value of one that may hold a secret is not repeated."""
    path = [str(part) for part in error["loc"]]
    given = "" if _SECRET_OPTIONS & set(path) else f" (got {error.get('input')!r})"
    return f"  {'.'.join(path)}: {error['msg']}{given}"


def _environment(variables: Mapping[str, str]) -> dict[str, Any]:
    """NEVSTREAM_GATEWAY__MQTT__PORT=1884 as {"gateway": {"mqtt": {"port": "1884"}}}.

    A table, or a list of tables, may be given as JSON.
    """
    values: dict[str, Any] = {}
    for name, value in variables.items():
        first, *rest = name.removeprefix(PREFIX).lower().split("__")
        # NEVSTREAM_CONFIG, NEVSTREAM_LOG and the like are not settings
        if not name.startswith(PREFIX) or first not in Settings.model_fields:
            continue
        given: Any = value
        if value.lstrip().startswith(("{", "[{")):
            try:
                given = json.loads(value)
            except json.JSONDecodeError as error:
                raise SettingsError(f"environment variable {name}: not a JSON object ({error})") from None
        for part in reversed(rest):
            given = {part: given}
        values = _merged(values, {first: given})
    return values


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        result[key] = _merged(result.get(key, {}), value) if isinstance(value, Mapping) else value
    return result


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _wrapped(text: str, indent: str = "# ", width: int = 108) -> Iterator[str]:
    line = ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > width:
            yield indent + line
            line = word
        else:
            line = f"{line} {word}".strip()
    if line:
        yield indent + line


def sample() -> str:
    """The documented settings file: every option with its meaning and its default, commented out."""
    lines = [
        "# nevstream settings. Every line shows the default; remove the # to change it.",
        "# Environment variables outrank this file: NEVSTREAM_GATEWAY__MQTT__PORT=1884",
        "",
    ]

    def walk(model: type[BaseModel], path: str) -> None:
        sections = []
        for name, info in model.model_fields.items():
            kind = info.annotation
            if isinstance(kind, type) and issubclass(kind, Section):
                sections.append((name, kind, info.description or ""))
                continue
            default = info.get_default(call_default_factory=True)
            choices = [str(c) for c in kind] if isinstance(kind, type) and issubclass(kind, StrEnum) else []
            lines.extend(_wrapped(info.description or ""))
            if choices:
                lines.append("# One of: " + ", ".join(choices))
            if default is None:
                lines.append(f"#{name} = {_toml((info.examples or [''])[0])}")
            elif isinstance(default, Mapping):
                pairs = ", ".join(f"{_toml(key)} = {_toml(value)}" for key, value in default.items())
                lines.append(f"#{name} = {{ {pairs} }}" if pairs else f"#{name} = {{}}")
            elif isinstance(default, tuple):
                lines.append(f"#{name} = [{', '.join(map(_toml, default))}]")
            else:
                lines.append(f"#{name} = {_toml(default)}")
            lines.append("")
        for name, kind, text in sections:
            where = f"{path}{name}"
            lines.extend(_wrapped(text))
            lines.append(f"[{where}]")
            walk(kind, f"{where}.")

    walk(Settings, "")
    return "\n".join(lines).rstrip() + "\n"

"""The command line as a person meets it: output, messages, exit codes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from services.settings import sample

pytestmark = pytest.mark.slow

GOLDEN: list[dict[str, Any]] = json.loads((Path(__file__).parent / "gbt32960/data/frames.json").read_text("utf-8"))
REPORT = next(frame["hex"] for frame in GOLDEN if frame["kind"] == "realtime" and frame["valid"] and frame["conforms"])


def nevstream(*arguments: str, stdin: bytes | None = None, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "services.cli", *arguments],
        input=stdin,
        capture_output=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )


def words(text: bytes) -> str:
    """Output with the terminal's line breaks taken out."""
    return " ".join(text.decode().split())


def test_decode_shows_every_byte_with_value_unit_and_clause() -> None:
    done = nevstream("decode", REPORT)

    assert done.returncode == 0
    assert "speed_kmh" in done.stdout.decode()
    assert "km/h" in done.stdout.decode()
    assert "table 9" in done.stdout.decode()


def test_decode_json_is_one_document_a_line_in_the_golden_key_paths(tmp_path: Path) -> None:
    file = tmp_path / "frames.txt"
    file.write_text("\n".join(f"{frame['hex']}  # {frame['id']}" for frame in GOLDEN))

    done = nevstream("decode", str(file), "--json")

    trees = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1, "two of them are not valid on purpose"
    assert [tree["cmd"] for tree in trees] == [
        frame["expect"].get("cmd", tree["cmd"]) for frame, tree in zip(GOLDEN, trees, strict=True)
    ]
    assert [tree["bcc_ok"] and tree["length_ok"] for tree in trees] == [frame["valid"] for frame in GOLDEN]


def test_decode_takes_raw_bytes_from_file_and_standard_input(tmp_path: Path) -> None:
    raw = bytes.fromhex(REPORT)
    file = tmp_path / "capture.bin"
    file.write_bytes(raw + raw)

    from_file, from_pipe = nevstream("decode", str(file), "--json"), nevstream("decode", "-", "--json", stdin=raw)

    assert from_file.stdout == from_pipe.stdout * 2
    assert (from_file.returncode, from_pipe.returncode) == (0, 0)


def test_decode_says_what_is_wrong_with_its_argument() -> None:
    done = nevstream("decode", "zz")

    assert done.returncode == 2
    assert "'zz' is neither hex digits nor a readable file" in words(done.stderr)
    assert b"Traceback" not in done.stderr


def test_decode_names_the_line_that_is_not_hex(tmp_path: Path) -> None:
    file = tmp_path / "frames.txt"
    file.write_text(f"{REPORT}\n\nxyz\n")

    done = nevstream("decode", str(file))

    assert done.returncode == 2
    assert "line 3 is not hex" in words(done.stderr)


@pytest.mark.parametrize("cut", ["2323", REPORT[:44], REPORT[:-2], REPORT[:-2] + "00"])
def test_decode_explains_a_broken_frame_and_ends_with_1(cut: str) -> None:
    done = nevstream("decode", cut)

    assert done.returncode == 1
    assert done.stdout
    assert b"Traceback" not in done.stderr


def test_config_prints_the_sample() -> None:
    assert nevstream("config").stdout.decode() == sample()


def test_a_wrong_setting_is_exit_code_2_with_its_name() -> None:
    done = nevstream("up", NEVSTREAM_WEB__PORT="http")

    assert done.returncode == 2
    assert "web.port" in words(done.stderr)


def test_up_on_a_taken_port_is_exit_code_4_and_starts_nothing(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])

        done = nevstream(
            "up",
            NEVSTREAM_GATEWAY__MQTT__PORT=port,
            NEVSTREAM_RUNTIME_DIR=str(tmp_path / "run"),
            NEVSTREAM_DATABASE__DATA_DIR=str(tmp_path / "pg"),
        )

    assert done.returncode == 4
    assert f"gateway.mqtt.port: cannot listen on 127.0.0.1:{port}" in words(done.stderr)
    assert not (tmp_path / "pg").exists()


def test_asking_a_system_that_does_not_run_says_so() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        done = nevstream("vehicles", "list", "--api", f"http://127.0.0.1:{free.getsockname()[1]}")

    assert done.returncode == 3
    assert "is `nevstream up` running there?" in words(done.stderr)


def _children(pid: int) -> set[int]:
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found |= {child} | _children(child)
    return found


@pytest.mark.slow
@pytest.mark.database
def test_demo_runs_and_stops_cleanly_on_ctrl_c(dsn: str, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        "NEVSTREAM_DATABASE__DSN": dsn,
        "NEVSTREAM_RUNTIME_DIR": str(tmp_path / "run"),
        "NEVSTREAM_GATEWAY__MQTT__PORT": "0",
        "NEVSTREAM_GATEWAY__GBT32960__PORT": "0",
        "NEVSTREAM_WEB__PORT": str(port),
    }
    with subprocess.Popen(
        [sys.executable, "-m", "services.cli", "demo", "--vehicles", "20"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **environment},
    ) as demo:
        try:
            deadline, seen = time.monotonic() + 120, 0
            while seen < 20:
                assert time.monotonic() < deadline, "the fleet does not show up"
                assert demo.poll() is None, demo.stdout and demo.stdout.read().decode()
                time.sleep(0.2)
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/overview", timeout=5) as answer:
                        seen = json.load(answer)["reporting"]["total"]
                except OSError:
                    continue
            children = _children(demo.pid)
            listed = nevstream("vehicles", "list", "--api", f"http://127.0.0.1:{port}", "--json")
            vin = json.loads(listed.stdout)["vehicles"][0]["vin"]
            table = nevstream("vehicles", "list", "--api", f"http://127.0.0.1:{port}")
            newest = nevstream("latest", vin, "--api", f"http://127.0.0.1:{port}")
            unknown = nevstream("latest", "LNEV0000000000000", "--api", f"http://127.0.0.1:{port}")
        finally:
            demo.send_signal(signal.SIGINT)
            said, _ = demo.communicate(timeout=60)

    assert demo.returncode == 0, said.decode()
    assert "stopped; no process is left behind" in said.decode()
    assert children
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    assert vin in table.stdout.decode()
    assert "soc_pct" in newest.stdout.decode()
    assert unknown.returncode == 2
    assert "LNEV0000000000000" in words(unknown.stderr)

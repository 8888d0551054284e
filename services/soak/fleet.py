"""The simulated fleet of a soak, as a process of its own, and what it says while it runs.

``python -m services.soak.fleet ARGUMENTS`` (the arguments of ``services.fleetsim.command.simulate`` as JSON) writes a
JSON line a second, {"now": counts}, and {"result": ...} at the end.  SIGTERM: send nothing new, wait for answers.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any

from services.errors import NevstreamError


class FleetProcess:
    """Started at once; ``now`` holds its newest counts."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.now: dict[str, Any] = {}
        self._result: dict[str, Any] | None = None
        self._process = subprocess.Popen(
            [sys.executable, "-m", "services.soak.fleet", json.dumps(dict(arguments))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._thread = threading.Thread(target=self._listen, name="soak fleet", daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                said = json.loads(line)
                self.now = said.get("now", self.now)
                self._result = said.get("result", self._result)

    def check(self) -> None:
        """Raise when it has ended by itself."""
        if self._process.poll() is not None and self._result is None:
            raise NevstreamError(f"the simulated fleet ended with exit code {self._process.returncode}")

    def finish(self, timeout_s: float) -> dict[str, Any]:
        """Let it stop, wait for its answers and its account."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        self._thread.join(timeout_s)
        if self._result is None:
            self.check()
            raise NevstreamError(f"the simulated fleet did not end within {timeout_s:.0f} s")
        self._process.wait(10.0)
        return self._result

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._thread.join()


def main(argv: list[str]) -> int:
    from services.fleetsim.command import simulate
    from services.lifecycle import end_with_parent

    end_with_parent()

    def tell(**said: Any) -> None:
        print(json.dumps(said), flush=True)

    result = simulate(**json.loads(argv[0]), progress=lambda now: tell(now=dict(now)), progress_every_s=1.0)
    tell(result=result.as_dict())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

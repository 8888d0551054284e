"""Coverage-guided fuzzing by atheris: ``python tests/fuzz/harness.py TARGET [libFuzzer options] [corpus folders]``.

Compiled kernels cannot be instrumented, so this runs on their twins (which the other tests hold equal to the
kernels); what it finds worth keeping goes into ``tests/fuzz/corpus``, where pytest runs it through the kernels.
Not part of the test suite: atheris is not among the dependencies (``pip install atheris``).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["NEVSTREAM_KERNELS"] = "reference"  # before schemas is imported

import atheris

# by path: packages of others bring a ``tests`` of their own, which would be found instead
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
with atheris.instrument_imports(include=["schemas", "services"]):
    import targets


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in targets.TARGETS:
        sys.exit(f"usage: python tests/fuzz/harness.py {'|'.join(targets.TARGETS)} [libFuzzer options] [corpus ...]")
    target = targets.TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

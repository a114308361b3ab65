"""The part of the benchmark that runs in a guest.

Usage: in_guest.py PROGRAMS RESULT LAYER...

Copies the built programs into memory, so that no call that is timed waits for the host, measures the
calls on each layer and writes them to RESULT as JSON.
"""

import json
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

# Run as a script, its own folder is first on the path; its modules are found from the checkout.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench import calls, programs  # noqa: E402

# Instructions hardly vary, and emulated ones are slow: little is enough.
_EFFORT = calls.Effort(cycles=2, rounds=9, fewer_calls=10)


def main(source: str, result: str, *layers: str) -> int:
    """Measure and write."""
    with tempfile.TemporaryDirectory() as memory:
        folder = shutil.copytree(source, Path(memory) / "programs")
        costs = [calls.measure(layer, _EFFORT, programs.built(folder), print) for layer in layers]
    Path(result).write_text(json.dumps([asdict(each) for each in costs]))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""Whether agents of others run on this machine: their programs would be measured as if they were ours."""

import json
import subprocess
import time

_PREFIX = "cloudtaser_"
_LOOK_S = 0.5
_BPFTOOL_S = 60


def agents_programs() -> frozenset[int]:
    """Return the ids of all agents' programs in the kernel now."""
    done = subprocess.run(
        ["bpftool", "--json", "prog", "list"], capture_output=True, text=True, timeout=_BPFTOOL_S, check=True
    )
    programs = json.loads(done.stdout)
    return frozenset(each["id"] for each in programs if each.get("name", "").startswith(_PREFIX))


class Patience:
    """Waits for the machine to be free of other agents, for so long in all and no longer."""

    def __init__(self, seconds: float) -> None:
        """Be ready to wait for `seconds`."""
        self._left = seconds

    def wait(self) -> bool:
        """Wait until no agent runs; whether that is so."""
        while agents_programs():
            if self._left <= 0:
                return False
            self._left -= _LOOK_S
            time.sleep(_LOOK_S)  # the kernel tells nobody when a program goes
        return True

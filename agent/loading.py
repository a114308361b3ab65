"""The agent's side of the loader: starts the child, and takes over the descriptors that it sends."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from agent.errors import LoadError

# The compiler is given two minutes: it takes half a second, or ten under emulation.
_COMPILE_TIMEOUT_S = 120.0


class Loaded:
    """The descriptors of loaded programs and their maps."""

    def __init__(self, *, maps: Mapping[str, int], programs: Mapping[str, int]) -> None:
        """Take descriptors by map name and by program function."""
        self.maps = dict(maps)
        self.programs = dict(programs)

    def close(self) -> None:
        """Let go of everything."""
        for descriptor in (*self.programs.values(), *self.maps.values()):
            os.close(descriptor)
        self.maps.clear()
        self.programs.clear()


class Loading:
    """A loader child at work; `finish` waits for what it sends.

    Started early, it compiles while the agent does something else.
    """

    def __init__(self, hooks: Sequence[str], defines: Mapping[str, int]) -> None:
        """Start the child with a request for `hooks`."""
        self._hooks = tuple(hooks)
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._child = subprocess.Popen(
                [sys.executable, "-I", "-m", "agent.loader", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        self._channel.settimeout(_COMPILE_TIMEOUT_S)
        self._channel.sendall(json.dumps({"hooks": self._hooks, "defines": defines}).encode())

    def finish(self) -> Loaded:
        """Return the descriptors.

        Raises:
            LoadError: the compiler or the kernel refuses, or the child died.

        """
        with self._channel:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._channel, 1 << 16, 128)
            except TimeoutError as err:
                self._child.kill()
                message = f"compiling the programs took more than {_COMPILE_TIMEOUT_S:.0f} s"
                raise LoadError(message) from err
            except ConnectionResetError:
                data, descriptors = b"", []
        _, noise = self._child.communicate()
        if not data:
            message = f"the loader died with status {self._child.returncode}: {_last_lines(noise)}"
            raise LoadError(message)
        answer: dict[str, Any] = json.loads(data)
        if "error" in answer:
            compiler = _last_lines(noise)
            raise LoadError(answer["error"] + (f" ({compiler})" if compiler else ""))
        maps = dict(zip(answer["maps"], descriptors, strict=False))
        programs = dict(zip(answer["programs"], descriptors[len(maps) :], strict=True))
        return Loaded(maps=maps, programs=programs)

    def abandon(self) -> None:
        """End the child, if it still works, without waiting for its answer."""
        if self._child.returncode is not None:
            return
        self._channel.close()
        self._child.kill()
        self._child.communicate()


def _last_lines(noise: bytes, count: int = 5) -> str:
    return " | ".join(noise.decode(errors="replace").strip().splitlines()[-count:])

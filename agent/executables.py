"""Which executables are wrappers and which are exempt, by name or file, mirrored into the kernel."""

import ctypes
import os
from pathlib import Path

from agent import abi
from agent.config import Config
from agent.errors import AgentError, ConfigError
from agent.kernel import Kernel
from agent.processes import COMM_BYTES, FileId, Processes, file_id

_WRAPPERS, _EXEMPT = "cloudtaser_wexe", "cloudtaser_xexe"
_OPTIONS = {_WRAPPERS: "protect-exe", _EXEMPT: "exempt-exe"}


class Executables:
    """The names and files that the configuration lists."""

    def __init__(self, kernel: Kernel, config: Config, processes: Processes, root: Path = Path("/")) -> None:
        """Look for files of the configuration below `root`, where the node's are."""
        self._root = root
        self._kernel = kernel
        self._config = config
        self._processes = processes
        self._files: dict[tuple[str, str], FileId] = {}
        self._written: dict[bytes, int] = {}

    def write(self) -> None:
        """Write what the programs need to know.

        Raises:
            ConfigError: more names or files than the programs can look for.

        """
        self._write_names()
        self.refresh()

    def change(self, config: Config) -> None:
        """Follow a new configuration; processes that run already stay what they are.

        Raises:
            ConfigError: more names or files than the programs can look for.

        """
        self._config = config
        wanted = set(self._wanted())
        self._drop({file for file in self._files if file not in wanted})
        self.write()

    def refresh(self) -> None:
        """Follow the files that the configuration names by path: an update gives them a new inode.

        A file that is missing keeps its last inode for as long as it is missing, as it is in the moment of
        an update.

        Raises:
            ConfigError: more files than the programs can look for; those that fit are looked for.

        """
        full: set[str] = set()
        for file in self._wanted():
            map_name, path = file
            found = file_id(Path(path), self._root)
            if found is None or found == self._files.get(file):
                continue
            if file in self._files:
                self._drop({file})
            is_new = found not in self._known(map_name)
            if is_new and not self._kernel.map(map_name).update(_file_key(found), ctypes.c_uint32(1)):
                full.add(_OPTIONS[map_name])  # and not kept, so that the next look tries again
            else:
                self._files[file] = found
        if full:
            raise ConfigError(f"{', '.join(sorted(full))}: more files than can be looked for: name fewer")

    def is_wrapper(self, pid: int, executable: FileId | None) -> bool:
        """Return whether the running process is a wrapper by its name or file."""
        if executable in self._known(_WRAPPERS):
            return True
        file_name, comm = self._processes.executable_name(pid), self._processes.comm(pid)
        return any(file_name == name or comm == name[:COMM_BYTES] for name in self._names())

    def exempt_if_listed(self, pid: int, executable: FileId | None) -> None:
        """Exempt the running process if its executable is listed."""
        if executable not in self._known(_EXEMPT):
            return
        exempt = self._kernel.map("cloudtaser_xpid")
        exempt.update(ctypes.c_uint32(pid), ctypes.c_uint64(self._processes.start_ns(pid)))
        try:
            same = self._processes.executable(pid) == executable
        except AgentError:
            same = False
        if not same:  # an exec since we looked
            exempt.delete(ctypes.c_uint32(pid))

    def _write_names(self) -> None:
        names = self._kernel.map("cloudtaser_name")
        wanted: dict[bytes, int] = {}
        for name in self._names():
            for text, flag in ((name, abi.NameFlag.OF_FILE), (name[:COMM_BYTES], abi.NameFlag.OF_TASK)):
                wanted[text] = wanted.get(text, 0) | flag
        for text in self._written.keys() - wanted.keys():
            names.delete(abi.Name(text=text))
            del self._written[text]
        for text, flags in wanted.items():
            if not names.update(abi.Name(text=text), ctypes.c_uint32(flags)):
                raise ConfigError("protect-exe: more names than can be looked for, which is 128 or more")
            self._written[text] = flags

    def _drop(self, files: set[tuple[str, str]]) -> None:
        for file in files:
            gone = self._files.pop(file)
            if gone not in self._known(file[0]):
                self._kernel.map(file[0]).delete(_file_key(gone))

    def _wanted(self) -> list[tuple[str, str]]:
        wanted = [(_WRAPPERS, path) for path in self._config.protect_exe if "/" in path]
        return wanted + [(_EXEMPT, path) for path in self._config.exempt_exe]

    def _names(self) -> list[bytes]:
        return [os.fsencode(name) for name in self._config.protect_exe if "/" not in name]

    def _known(self, map_name: str) -> set[FileId]:
        return {file for (of, _), file in self._files.items() if of == map_name}


def _file_key(file: FileId) -> abi.FileId:
    return abi.FileId(inode=file.inode, device=file.device)

"""Where the kernel's functions are that read a file of /proc, from /proc/kallsyms.

Where one of them is on the call stack, that is what a remote access is for: `remote_memory.bpf.c` tells
/proc/P/cmdline, which every ps reads, from /proc/P/mem by it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.abi import PATHS, PathClass
from agent.errors import NodeError

# Called through tables of pointers, so that no compiler can inline them. What a compiler splits off has
# the function's name and a suffix: "proc_pid_cmdline_read.cold".
_FUNCTIONS: Mapping[str, PathClass] = {
    "proc_pid_cmdline_read": PathClass.CMDLINE,
    "mem_rw": PathClass.PROC_MEM,
    "mem_read": PathClass.PROC_MEM,
    "mem_write": PathClass.PROC_MEM,
    "environ_read": PathClass.PROC_ENVIRON,
    "pagemap_read": PathClass.PROC_MAPS,
    "clear_refs_write": PathClass.PROC_MAPS,
    "seq_read": PathClass.PROC_MAPS,
    "seq_read_iter": PathClass.PROC_MAPS,
}

_WANTED = re.compile(rf"^[0-9a-f]+ [tT] ({'|'.join(_FUNCTIONS)})(?:\.\S*)?$".encode(), re.MULTILINE)
_ADDRESS = re.compile(rb"^([0-9a-f]+) ", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class CodePath:
    """The addresses [start, end) of a function, and the file that it reads."""

    start: int
    end: int
    path_class: PathClass


def code_paths(kallsyms: Path) -> tuple[CodePath, ...]:
    """Return every part of the functions, in the file's order.

    Raises:
        NodeError: the functions that must be told apart are not there, or in more parts than there is room.

    """
    symbols = kallsyms.read_bytes()
    found = []
    for match in _WANTED.finditer(symbols):
        start = int(symbols[match.start() : symbols.index(b" ", match.start())], 16)
        # The list is in the order of addresses; an alias has the same one.
        following = (int(line[1], 16) for line in _ADDRESS.finditer(symbols, match.end()))
        end = next((address for address in following if address != start), start)
        found.append(CodePath(start=start, end=end, path_class=_FUNCTIONS[match[1].decode()]))
    found = [path for path in found if path.start]  # hidden addresses are zero
    missing = {PathClass.CMDLINE, PathClass.PROC_MEM, PathClass.PROC_ENVIRON} - {
        path.path_class for path in found
    }
    if missing:
        names = ", ".join(name for name, of in _FUNCTIONS.items() if of in missing)
        message = f"{kallsyms} does not show {names}: set sysctl kernel.kptr_restrict to 1"
        raise NodeError(message)
    if len(found) > PATHS:
        message = f"this kernel has the functions that read /proc in {len(found)} parts, room is for {PATHS}"
        raise NodeError(message)
    return tuple(found)

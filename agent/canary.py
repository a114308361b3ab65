"""The self-test's other side: a victim with a secret, and attackers that try every vector on it.

Started by `selftest.Canary` as a process of its own, with as little in it as Python allows. It forks the
victims, names their pids, and then, for each vector that it is sent, forks an attacker that makes the real
system calls and puts what it gets into memory which this process shares and which outlives the attacker.

Each line it reads is a vector's id; each line it writes is a JSON object.
"""

import ctypes
import json
import mmap
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

_PTRACE_TRACEME, _PTRACE_PEEKDATA, _PTRACE_ATTACH, _PTRACE_DETACH = 0, 2, 16, 17
_SYS_PROCESS_VM_READV, _SYS_PROCESS_VM_WRITEV = 310, 311
_SYS_PIDFD_OPEN, _SYS_PIDFD_GETFD = 434, 438

# An attacker that waits for something that does not come must not hold up the agent.
_ATTACK_SECONDS = 20
_SECRET_BYTES = 32

# Where an attacker writes: the errno of a refusal, then what it got.
_ERRNO, _GOT = 0, 8

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


class _IoVector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def _refuse_on_error(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


def _system_call(number: int, *arguments: Any) -> int:
    # syscall(2) takes longs: an int's upper half would be whatever the register or the stack holds.
    wide = (ctypes.c_long(each) if isinstance(each, int) else each for each in arguments)
    return _refuse_on_error(_libc.syscall(ctypes.c_long(number), *wide))


class _Scene:
    """The victims and the memory that all share."""

    def __init__(self) -> None:
        self.secret = os.urandom(_SECRET_BYTES // 2).hex().encode()
        self.shared = mmap.mmap(-1, mmap.PAGESIZE)
        private = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.private_address = ctypes.addressof(ctypes.c_char.from_buffer(private))
        # The victim's scratch page is shared, so that a write into the victim can be seen from here.
        self.scratch = mmap.mmap(-1, mmap.PAGESIZE)
        self.scratch_address = ctypes.addressof(ctypes.c_char.from_buffer(self.scratch))
        ready, tell = os.pipe()
        self.victim = os.fork()
        if not self.victim:
            private[:_SECRET_BYTES] = self.secret
            memory = os.memfd_create("canary")
            os.write(memory, self.secret)
            os.write(tell, str(memory).encode())
            _wait_for_end()
        self.victim_descriptor = int(os.read(ready, 16))
        self.go, start = os.pipe()
        self.volunteer = os.fork()  # asks to be traced by its parent
        if not self.volunteer:
            os.close(start)
            if not os.read(self.go, 1):
                os._exit(0)  # nobody asked, and the parent has gone
            self.attempt(_traceme)
        self.start = start

    def attempt(self, attack: Callable[["_Scene"], bytes]) -> None:
        """Make one attempt in this process and end it."""
        signal.alarm(_ATTACK_SECONDS)
        try:
            got = attack(self)
            self.shared[_GOT : _GOT + len(got)] = got
        except OSError as err:
            self.shared[_ERRNO] = min(err.errno or 0, 255)
        os._exit(0)

    def outcome(self, attacker: int) -> dict[str, Any]:
        """Wait for an attacker and tell how it ended and what it left in the shared page."""
        _, status = os.waitpid(attacker, 0)
        got = self.shared[_GOT:].rstrip(b"\0")
        return {
            "killed": os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL,
            "errno": self.shared[_ERRNO],
            "leaked": bool(got),
        }


def _wait_for_end() -> None:
    # The parent's end, however it comes, ends the victim too (PR_SET_PDEATHSIG).
    _libc.prctl(1, signal.SIGKILL, 0, 0, 0)
    while True:
        signal.pause()


def _process_vm(scene: _Scene, number: int, local: bytes, remote_address: int) -> bytes:
    buffer = ctypes.create_string_buffer(local, len(local))
    here = _IoVector(ctypes.addressof(buffer), len(local))
    there = _IoVector(remote_address, len(local))
    _system_call(number, scene.victim, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
    return bytes(buffer.raw)


def _process_vm_read(scene: _Scene) -> bytes:
    return _process_vm(scene, _SYS_PROCESS_VM_READV, bytes(_SECRET_BYTES), scene.private_address)


def _process_vm_write(scene: _Scene) -> bytes:
    _process_vm(scene, _SYS_PROCESS_VM_WRITEV, b"written", scene.scratch_address)
    return bytes(scene.scratch[:7])


def _ptrace_attach(scene: _Scene) -> bytes:
    _refuse_on_error(_libc.ptrace(_PTRACE_ATTACH, scene.victim, None, None))
    os.waitpid(scene.victim, 0)
    ctypes.set_errno(0)
    word = _libc.ptrace(_PTRACE_PEEKDATA, scene.victim, scene.private_address, None)
    if ctypes.get_errno():
        raise OSError(ctypes.get_errno(), "")
    _libc.ptrace(_PTRACE_DETACH, scene.victim, None, None)
    return int(word & (1 << 64) - 1).to_bytes(8, "little")


def _traceme(_scene: _Scene) -> bytes:
    _refuse_on_error(_libc.ptrace(_PTRACE_TRACEME, 0, None, None))
    return b"traced"


def _read_proc(name: str) -> Callable[[_Scene], bytes]:
    def attack(scene: _Scene) -> bytes:
        descriptor = os.open(f"/proc/{scene.victim}/{name}", os.O_RDONLY)
        return os.read(descriptor, 1024)

    return attack


def _proc_mem(scene: _Scene) -> bytes:
    descriptor = os.open(f"/proc/{scene.victim}/mem", os.O_RDONLY)
    return os.pread(descriptor, _SECRET_BYTES, scene.private_address)


def _pidfd_getfd(scene: _Scene) -> bytes:
    pidfd = _system_call(_SYS_PIDFD_OPEN, scene.victim, 0)
    taken = _system_call(_SYS_PIDFD_GETFD, pidfd, scene.victim_descriptor, 0)
    return os.pread(taken, _SECRET_BYTES, 0)


_ATTACKS: dict[str, Callable[[_Scene], bytes]] = {
    "ptrace-attach": _ptrace_attach,
    "process-vm-read": _process_vm_read,
    "process-vm-write": _process_vm_write,
    "proc-mem": _proc_mem,
    "proc-environ": _read_proc("environ"),
    "proc-maps": _read_proc("maps"),
    "proc-stack": _read_proc("syscall"),
    "pidfd-getfd": _pidfd_getfd,
}


def main() -> None:
    """Name the victims, then attack on request until the input ends."""
    scene = _Scene()
    _say({"victims": [scene.victim, scene.volunteer]})
    for line in sys.stdin:
        vector = line.strip()
        scene.shared[:] = bytes(len(scene.shared))
        scene.scratch[:] = bytes(len(scene.scratch))
        if vector == "ptrace-traceme":
            os.write(scene.start, b"g")
            attacker = scene.volunteer
        else:
            attacker = os.fork()
            if not attacker:
                scene.attempt(_ATTACKS[vector])
        _say(scene.outcome(attacker))
    os.kill(scene.victim, signal.SIGKILL)
    os.waitpid(scene.victim, 0)


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

"""An attacker: copies another process's memory to standard output with process_vm_readv.

Usage: read_memory.py PID ADDRESS LENGTH
"""

import ctypes
import os
import sys


class _IoVector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def main(pid: int, address: int, length: int) -> int:
    """Read and write out; an exit code says whether the kernel agreed."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.process_vm_readv.restype = ctypes.c_ssize_t
    libc.process_vm_readv.argtypes = (
        ctypes.c_int,
        *(ctypes.POINTER(_IoVector), ctypes.c_ulong) * 2,
        ctypes.c_ulong,
    )
    buffer = ctypes.create_string_buffer(length)
    here = _IoVector(ctypes.addressof(buffer), length)
    there = _IoVector(address, length)
    got = libc.process_vm_readv(pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
    if got < 0:
        sys.stderr.write(f"process_vm_readv: {os.strerror(ctypes.get_errno())}\n")
        return 1
    sys.stdout.buffer.write(buffer.raw[:got])
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:4])))

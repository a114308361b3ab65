"""All threads take their memory from one heap, which shrinks."""

import subprocess
import sys

import pytest

from agent import allocator

# Says whether what a thread gets lies in the heap that the program began with.
PROGRAM = """
import ctypes, re, sys, threading
from pathlib import Path
from agent.allocator import keep_small

if sys.argv[1] == "small":
    keep_small()
malloc = ctypes.CDLL(None).malloc
malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
got = []
barrier = threading.Barrier(4)

def work():
    barrier.wait()
    got.append(malloc(1000))
    barrier.wait()

threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
heap = re.search(r"^(\\w+)-(\\w+) .*\\[heap\\]$", Path("/proc/self/maps").read_text(), re.MULTILINE)
print(all(int(heap[1], 16) <= each < int(heap[2], 16) for each in got))
"""


@pytest.mark.parametrize(("how", "expected"), [("small", "True"), ("usual", "False")])
def test_threads_share_the_heap(how, expected):
    command = [sys.executable, "-c", PROGRAM, how]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)

    assert told.stdout.strip() == expected


class Other:
    """A C library without the function."""


def test_another_c_library_does_without(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda _name: Other())

    allocator.keep_small()

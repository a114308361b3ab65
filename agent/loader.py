"""The child that compiles and loads: the only importer of bcc.

It is started by `kernel.load`, takes one request from a socket, compiles the programs with BCC against the
header made from BTF, loads them through libbpf under our own names, sends the descriptors and exits. So the
agent itself never carries LLVM, and whatever BCC prints or does ends with the child.

Request, JSON: ``{"hooks": [function, ...], "defines": {name: integer}, "btf": path}``. Answer, JSON with the
descriptors as ancillary data, maps first: ``{"maps": [name, ...], "programs": [function, ...]}`` or
``{"error": message}``.
"""

import ctypes
import errno
import json
import os
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.btf import VMLINUX, Btf, header
from agent.errors import AgentError, LoadError
from agent.hooks import HOOKS, Hook
from agent.libbpf import Libbpf, ProgLoadOpts
from agent.preflight import target_id

SOURCES = Path(__file__).parent / "bpf_programs"
# In the order in which each needs what the ones before it define.
COMMON = ("events.h", "kernel.h", "maps.h", "trees.h", "pods.h", "verdict.h", "vectors.h")

# What BCC includes from a tree of kernel sources before it sees a word of ours.
_KERNEL_TREE = {
    "include/linux/kconfig.h": "#define CONFIG_BPF_SYSCALL 1\n",
    "include/linux/version.h": (
        "#define LINUX_VERSION_CODE 0\n#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))\n"
    ),
    "arch/x86/include/asm/page.h": "#define PAGE_SIZE 4096\n",
    "include/uapi/linux/bpf.h": "",
    "include/uapi/linux/if_packet.h": "",
    "include/linux/log2.h": "",
    "include/linux/bpf_common.h": "",
}

_TYPES = """\
#ifndef CLOUDTASER_TYPES_H
#define CLOUDTASER_TYPES_H
typedef signed char __s8;
typedef unsigned char __u8;
typedef short __s16;
typedef unsigned short __u16;
typedef int __s32;
typedef unsigned int __u32;
typedef long long __s64;
typedef unsigned long long __u64;
typedef __s8 s8;
typedef __u8 u8;
typedef __s16 s16;
typedef __u16 u16;
typedef __s32 s32;
typedef __u32 u32;
typedef __s64 s64;
typedef __u64 u64;
typedef __u16 __le16, __be16, __sum16;
typedef __u32 __le32, __be32, __wsum;
typedef __u64 __le64, __be64;
typedef unsigned long size_t;
typedef unsigned long uintptr_t;
typedef int pid_t;
typedef _Bool bool;
#define __aligned_u64 __u64 __attribute__((aligned(8)))
#define __always_inline inline __attribute__((always_inline))
#define __force
#define __bitwise
%s
#endif
"""

# Verifier logs end with a summary; the refusal is in the lines before it.
_LOG_BYTES = 1 << 20
_LOG_TAIL_LINES = 12

# Helper numbers, to see in the compiled code what lockdown would refuse.
_PROBE_READS = frozenset({4, 45, 113, 115})


def source_text(hooks: Iterable[Hook]) -> str:
    """Return one translation unit with the sources of `hooks`.

    BCC rewrites the uses of maps in its main text only, never in an included file, so the files are put
    together here; `#line` keeps the compiler's messages pointing at them.
    """
    names = [*COMMON, *dict.fromkeys(hook.source for hook in hooks)]
    parts = ["#include <linux/types.h>\n"]
    parts += [f'#line 1 "bpf_programs/{name}"\n{(SOURCES / name).read_text()}' for name in names]
    return "".join(parts)


def kernel_tree(folder: Path, btf: Btf) -> None:
    """Write the few files that BCC wants of a kernel source tree into `folder`."""
    for name, text in (*_KERNEL_TREE.items(), ("include/linux/types.h", _TYPES % header(btf))):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


class Compiled:
    """The programs as BCC compiled them, with their maps already created.

    Raises:
        LoadError: BCC is missing, is not BCC, or does not compile the sources.

    """

    def __init__(self, hooks: Sequence[Hook], defines: Mapping[str, int], btf: Btf) -> None:
        """Compile the sources of `hooks` for the kernel that `btf` describes."""
        tree = Path(tempfile.mkdtemp(prefix="cloudtaser-"))
        try:
            kernel_tree(tree, btf)
            os.environ["BCC_KERNEL_SOURCE"] = str(tree)
            flags = [f"-D{name}={value:d}" for name, value in defines.items()]
            bcc_class, self._lib = _import_bcc()
            # BCC re-defines what its own compatibility headers define already.
            self._bpf = bcc_class(text=source_text(hooks), cflags=[*flags, "-Wno-macro-redefined"])
        except LoadError:
            raise
        except Exception as err:  # BCC raises Exception itself; the compiler's words are on stderr
            message = f"the programs do not compile on this kernel: {err}"
            raise LoadError(message) from err
        finally:
            shutil.rmtree(tree)
        self._lib.bpf_function_start.restype = ctypes.c_void_p
        self._lib.bpf_function_start.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        self._lib.bpf_function_size.restype = ctypes.c_size_t
        self._lib.bpf_function_size.argtypes = [ctypes.c_void_p, ctypes.c_char_p]

    def maps(self) -> dict[str, int]:
        """Return the descriptor of every map by its name."""
        names = dict.fromkeys(re.findall(r"\b(cloudtaser_\w{4})\b", (SOURCES / "maps.h").read_text()))
        try:
            return {name: self._bpf[name.encode()].map_fd for name in names}
        except KeyError as err:
            raise LoadError(
                f"the compiled programs have no map {err}: are the sources being changed?"
            ) from err

    def instructions(self, function: str) -> bytes:
        """Return the code of one program."""
        start = self._lib.bpf_function_start(self._bpf.module, function.encode())
        size = self._lib.bpf_function_size(self._bpf.module, function.encode())
        if not start:
            message = f"the compiled programs have no function {function}"
            raise LoadError(message)
        return ctypes.string_at(start, size)


def helper_calls(code: bytes) -> set[int]:
    """Return the numbers of the kernel helpers that the program calls."""
    call, size = 0x85, 8
    return {
        int.from_bytes(code[at + 4 : at + 8], "little")
        for at in range(0, len(code), size)
        if code[at] == call and not code[at + 1] >> 4  # a source register names another kind of call
    }


def load(libbpf: Libbpf, btf: Btf, hook: Hook, code: bytes) -> int:
    """Load one program and return its descriptor.

    Raises:
        LoadError: the kernel refuses it; the message ends with the verifier's reason.

    """
    if not hook.reads_kernel and helper_calls(code) & _PROBE_READS:
        message = (
            f"{hook.function} was compiled to read kernel memory, which lockdown=confidentiality refuses"
        )
        raise LoadError(message)
    target = target_id(btf, hook)
    if target is None:
        raise LoadError(f"this kernel has no {hook.target}, where {hook.function} attaches")
    program_type, attach_type = hook.attach.value
    options = ProgLoadOpts(
        sz=ctypes.sizeof(ProgLoadOpts),
        expected_attach_type=attach_type,
        attach_btf_id=target,
    )
    buffer = ctypes.create_string_buffer(code)

    def attempt() -> int:
        result: int = libbpf.bpf_prog_load(
            program_type, hook.name.encode(), b"GPL", buffer, len(code) // 8, ctypes.byref(options)
        )
        return result

    descriptor = attempt()
    if descriptor >= 0:
        return descriptor
    # The log is asked for only now: writing it costs more than the load.
    log = ctypes.create_string_buffer(_LOG_BYTES)
    options.log_level, options.log_size, options.log_buf = 1, len(log), ctypes.cast(log, ctypes.c_char_p)
    again = attempt()
    if again >= 0:  # a refusal for want of memory, say, that has passed
        return again
    reason = " | ".join(log.value.decode(errors="replace").strip().splitlines()[-_LOG_TAIL_LINES:])
    name = errno.errorcode.get(-descriptor, str(-descriptor))
    message = f"the kernel refuses {hook.function}: {name}{': ' + reason if reason else ''}"
    raise LoadError(message)


def serve(channel: socket.socket) -> None:
    """Answer one request on `channel`."""
    request: dict[str, Any] = json.loads(channel.recv(1 << 16))
    try:
        hooks = [HOOKS[function] for function in request["hooks"]]
        libbpf = Libbpf()
        with Btf(libbpf, request.get("btf", VMLINUX)) as btf:
            compiled = Compiled(hooks, request["defines"], btf)
            programs = {
                hook.function: load(libbpf, btf, hook, compiled.instructions(hook.function)) for hook in hooks
            }
            maps = compiled.maps()
        answer = {"maps": list(maps), "programs": list(programs)}
        socket.send_fds(channel, [json.dumps(answer).encode()], [*maps.values(), *programs.values()])
    except AgentError as err:
        channel.sendall(json.dumps({"error": str(err)}).encode())


def _import_bcc() -> tuple[Any, Any]:
    try:
        from bcc import BPF  # noqa: PLC0415  (its absence is an answer, not a crash)
        from bcc.libbcc import lib  # noqa: PLC0415
    except ImportError as err:
        message = "BCC for Python is missing: install Debian's python3-bpfcc (never PyPI's unrelated bcc)"
        raise LoadError(message) from err
    return BPF, lib


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))

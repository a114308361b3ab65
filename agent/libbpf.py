"""libbpf.so.1 through ctypes: only declarations, each as in libbpf's own headers.

The distribution's library is used because it is there wherever BCC is, and because BCC itself can neither
name programs as we want nor attach fmod_ret in every version that we support.
"""

import ctypes
from typing import Any

from agent.errors import NodeError

LIBRARY = "libbpf.so.1"


class ProgLoadOpts(ctypes.Structure):
    """`struct bpf_prog_load_opts`; `sz` tells the library which members this caller knows."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("attempts", ctypes.c_int),
        ("expected_attach_type", ctypes.c_int),
        ("prog_btf_fd", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_ifindex", ctypes.c_uint32),
        ("kern_version", ctypes.c_uint32),
        ("attach_btf_id", ctypes.c_uint32),
        ("attach_prog_fd", ctypes.c_uint32),
        ("attach_btf_obj_fd", ctypes.c_uint32),
        ("fd_array", ctypes.c_void_p),
        ("func_info", ctypes.c_void_p),
        ("func_info_cnt", ctypes.c_uint32),
        ("func_info_rec_size", ctypes.c_uint32),
        ("line_info", ctypes.c_void_p),
        ("line_info_cnt", ctypes.c_uint32),
        ("line_info_rec_size", ctypes.c_uint32),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_char_p),
    )


class ProgInfo(ctypes.Structure):
    """The beginning of `struct bpf_prog_info` up to what we read; the kernel fills as much as it knows."""

    _fields_ = (
        ("until_then", ctypes.c_uint8 * 208),
        ("recursion_misses", ctypes.c_uint64),
    )


RingSample = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
Print = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)

_FUNCTIONS: tuple[tuple[str, object, tuple[object, ...]], ...] = (
    ("libbpf_set_print", ctypes.c_void_p, (Print,)),
    ("btf__parse", ctypes.c_void_p, (ctypes.c_char_p, ctypes.c_void_p)),
    ("btf__free", None, (ctypes.c_void_p,)),
    ("btf__find_by_name_kind", ctypes.c_int, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32)),
    ("btf__type_by_id", ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_uint32)),
    ("btf__name_by_offset", ctypes.c_char_p, (ctypes.c_void_p, ctypes.c_uint32)),
    (
        "bpf_prog_load",
        ctypes.c_int,
        (
            ctypes.c_int,
            ctypes.c_char_p,
            ctypes.c_char_p,
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.POINTER(ProgLoadOpts),
        ),
    ),
    (
        "bpf_obj_get_info_by_fd",
        ctypes.c_int,
        (ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint32)),
    ),
    ("bpf_raw_tracepoint_open", ctypes.c_int, (ctypes.c_char_p, ctypes.c_int)),
    ("bpf_map_lookup_elem", ctypes.c_int, (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)),
    (
        "bpf_map_update_elem",
        ctypes.c_int,
        (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64),
    ),
    ("bpf_map_delete_elem", ctypes.c_int, (ctypes.c_int, ctypes.c_void_p)),
    ("bpf_map_get_next_key", ctypes.c_int, (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)),
    ("libbpf_num_possible_cpus", ctypes.c_int, ()),
    (
        "ring_buffer__new",
        ctypes.c_void_p,
        (ctypes.c_int, RingSample, ctypes.c_void_p, ctypes.c_void_p),
    ),
    ("ring_buffer__consume", ctypes.c_int, (ctypes.c_void_p,)),
    ("ring_buffer__epoll_fd", ctypes.c_int, (ctypes.c_void_p,)),
    ("ring_buffer__free", None, (ctypes.c_void_p,)),
)


class Libbpf:
    """The library, loaded, with every function that the agent uses declared.

    Raises:
        NodeError: the library is not installed.

    """

    def __init__(self, name: str = LIBRARY) -> None:
        """Load the library called `name` and silence its messages, which we translate ourselves."""
        try:
            library = ctypes.CDLL(name, use_errno=True)
        except OSError as err:
            message = f"{name} is not installed: install Debian's libbpf1 (python3-bpfcc brings it)"
            raise NodeError(message) from err
        for function_name, result, arguments in _FUNCTIONS:
            function = getattr(library, function_name)
            function.restype = result
            function.argtypes = list(arguments)
        self._library = library
        # ctypes frees a callback that nobody holds, and the library would call into nothing.
        self._quiet = Print(lambda _level, _format, _arguments: 0)
        library.libbpf_set_print(self._quiet)

    def __getattr__(self, name: str) -> Any:
        """Return the library's function `name`, whose result has the declared type."""
        return getattr(self._library, name)

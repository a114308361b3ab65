"""glibc's allocator, set for a process that has much to do for a moment and then little for weeks."""

import ctypes

_M_TRIM_THRESHOLD, _M_ARENA_MAX = -1, -8  # malloc.h
_TRIM_BYTES = 64 << 10


def keep_small() -> None:
    """Give freed memory back, and share one arena among all threads; to be called before there are any.

    An arena for each thread, and a heap that never shrinks, hold ten MiB that were used once: by the import
    of the Kubernetes client, and for each list of pods. Another C library does without.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)

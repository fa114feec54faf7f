"""Memory as large products want it: kept by the process between calls, and on huge pages.

Both are requests to the C library and to Linux, and change speed only. Elsewhere they do nothing and say so. No
framework is imported.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap

HUGE_PAGE = 2 << 20  # bytes
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # of glibc's malloc.h
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25  # of Linux's mman.h


def tune_allocator() -> bool:
    """Let the process keep freed memory instead of giving it back and faulting it in again at the next call.

    For programs that do nothing but compute: memory once used stays with the process, for everything in it. Returns
    whether it was applied, which needs glibc.
    """
    mallopt = getattr(_libc(), "mallopt", None)
    if mallopt is None or not hasattr(_libc(), "gnu_get_libc_version"):
        return False
    settings = ((_M_MMAP_THRESHOLD, 1 << 30), (_M_TRIM_THRESHOLD, 1 << 30), (_M_TOP_PAD, 64 << 20))
    return all(mallopt(name, value) == 1 for name, value in settings)


def use_huge_pages(address: int, size: int) -> bool:
    """Ask for huge pages behind `size` bytes from `address` on; weights that are read once per call gain by it.

    The bytes stay where and what they are. Returns whether it was applied, which needs Linux 6.1 and `size` enough
    for a whole huge page.
    """
    first = -(-address // HUGE_PAGE) * HUGE_PAGE
    length = (address + size) // HUGE_PAGE * HUGE_PAGE - first
    madvise = getattr(_libc(), "madvise", None)
    if madvise is None or length <= 0 or not hasattr(mmap, "MADV_HUGEPAGE"):
        return False
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return all(madvise(first, length, advice) == 0 for advice in (_MADV_HUGEPAGE, _MADV_COLLAPSE))


@functools.cache
def _libc() -> ctypes.CDLL | None:
    with contextlib.suppress(OSError, TypeError):
        return ctypes.CDLL(None)
    return None

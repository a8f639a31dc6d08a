"""Memory that is really taken from the system, and given back when it is let go."""

from __future__ import annotations

from mmap import MAP_ANONYMOUS, MAP_PRIVATE, PAGESIZE, mmap

from fake_device import MIB


def touch(mebibytes: int) -> mmap:
    """Pages of their own, each written.

    Not a ``bytearray``: malloc may serve that from memory which earlier tests freed, and which still counts as
    resident. Then nothing is seen to grow, nor to shrink when it is freed.
    """
    pages = mmap(-1, mebibytes * MIB, MAP_PRIVATE | MAP_ANONYMOUS)
    pages[::PAGESIZE] = b"x" * (len(pages) // PAGESIZE)
    return pages

"""Hashes over files, made on all cores: weights and engines of gigabytes are hashed at every start."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PIECE = 2 << 20
"""Bytes of a file that are hashed at once, and that each core holds of it."""


def file_sha256(path: Path) -> str:
    """Hash over the hashes of a file's pieces, in their order (hex); so it is not what ``sha256sum`` says.

    Raises:
        OSError: when it cannot be read.
    """

    def of_piece(start: int) -> bytes:
        # not of malloc: it would keep the pieces in the arena of each thread
        with path.open("rb") as stream, mmap.mmap(-1, PIECE) as room, memoryview(room) as piece:
            stream.seek(start)
            return hashlib.sha256(piece[: stream.readinto(room)]).digest()

    with ThreadPoolExecutor() as pool:  # reading and hashing are done outside of the interpreter's lock
        digests = pool.map(of_piece, range(0, path.stat().st_size, PIECE))
        return hashlib.sha256(b"".join(digests)).hexdigest()


def files_sha256(paths: Iterable[Path]) -> str:
    """Hash over the hashes of files, in their order (hex).

    Raises:
        OSError: when one cannot be read.
    """
    digests = (bytes.fromhex(file_sha256(path)) for path in paths)
    return hashlib.sha256(b"".join(digests)).hexdigest()

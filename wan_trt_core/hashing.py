"""Hashes over files, made on all cores: weights and engines have gigabytes."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import time
import uuid
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

PIECE = 2 << 20
"""Bytes of a file that are hashed at once, and that each core holds of it."""

SETTLED = 2 * 10**9
"""Nanoseconds that a file must be unchanged before its hash is noted: a change right after might have the same time."""


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


def files_sha256(paths: Iterable[Path], notes: Path | None = None) -> str:
    """Hash over the hashes of files, in their order (hex).

    Args:
        notes: folder in which the hash of each file is noted: one that is noted, and that nobody changed since, is not
            read again. For what others own and nothing depends on the wholeness of, as gigabytes of weights.

    Raises:
        OSError: when one cannot be read.
    """
    of_file = file_sha256 if notes is None else partial(_noted_sha256, notes=notes)
    digests = (bytes.fromhex(of_file(path)) for path in paths)
    return hashlib.sha256(b"".join(digests)).hexdigest()


def note_of(notes: Path, *told: object) -> Path:
    """The file of a note by what it is about, in JSON's types. That of a hash made in other pieces is another."""
    return notes / hashlib.sha256(json.dumps([*told, PIECE]).encode()).hexdigest()


def stamp(path: Path) -> tuple[str, int, int, int]:
    """What changes when a file does: where it lies, its size, inode and time of the last change.

    That is the inode's, which nobody can set: ``rsync --inplace`` and ``cp -p`` give new content an old mtime.

    Raises:
        OSError: when there is none.
    """
    whole = path.resolve()  # a hub's snapshot links to files that are named by their content
    found = whole.stat()
    return str(whole), found.st_size, found.st_ino, found.st_ctime_ns


def read_note(note: Path) -> str | None:
    """The hash (hex) in a note; None where there is none that is whole and may be read."""
    with suppress(OSError, UnicodeDecodeError):
        if len(found := note.read_text()) == hashlib.sha256().digest_size * 2:
            return found
    return None


def write_note(note: Path, made: str) -> None:
    """Write a hash (hex) whole or not at all: not where only others may write. No two processes share a name in the
    making, as containers would that of their process: the first in each is number 1."""
    temporary = note.with_suffix(f".{uuid.uuid4().hex}.tmp")
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(made)
        os.replace(temporary, note)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _noted_sha256(path: Path, notes: Path) -> str:
    before = stamp(path)
    note = note_of(notes, before)
    if (found := read_note(note)) is not None:
        return found
    made = file_sha256(path)
    *_, changed = before
    if stamp(path) == before and time.time_ns() - changed > SETTLED:
        write_note(note, made)
    return made

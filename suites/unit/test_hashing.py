"""Hashes of files, and the notes that spare reading gigabytes again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from wan_trt_core import hashing
from wan_trt_core.hashing import PIECE, file_sha256, files_sha256

DIGEST = "0f" * 32
LONG_AGO = time.time_ns() - 10**12


TICK = 0.05
"""Seconds in which the clock of any file system moves on."""


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is taken for one that nobody changed for a while."""
    monkeypatch.setattr(hashing, "SETTLED", -(10**9))
    path = tmp_path / "weights"
    path.write_bytes(b"a" * 100)
    os.utime(path, ns=(LONG_AGO, LONG_AGO))
    return path


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose content was hashed."""

    def hashed(path: Path) -> str:
        seen.append(path)
        return file_sha256(path)

    seen: list[Path] = []
    monkeypatch.setattr(hashing, "file_sha256", hashed)
    return seen


def test_every_piece_of_a_file_counts(tmp_path: Path) -> None:
    path = tmp_path / "file"
    found = set()
    for content in (b"", b"a", b"a" * PIECE, b"a" * PIECE + b"b", b"b" + b"a" * PIECE, b"a" * 2 * PIECE):
        path.write_bytes(content)
        found.add(file_sha256(path))
    assert len(found) == 6


def test_a_noted_file_is_not_read_again(weights: Path, tmp_path: Path, read: list[Path]) -> None:
    notes = tmp_path / "notes"
    first = files_sha256([weights], notes)
    assert first == files_sha256([weights], notes) == files_sha256([weights])
    assert read == [weights, weights], "once for the note, and once without one"


def _longer(path: Path) -> None:
    path.write_bytes(b"a" * 101)
    os.utime(path, ns=(LONG_AGO, LONG_AGO))


def _later(path: Path) -> None:
    time.sleep(TICK)
    path.write_bytes(b"b" * 100)


def _in_place_under_the_same_time(path: Path) -> None:
    _later(path)
    os.utime(path, ns=(LONG_AGO, LONG_AGO))


def _replaced(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"b" * 100)
    os.utime(other, ns=(LONG_AGO, LONG_AGO))
    other.replace(path)


@pytest.mark.parametrize("change", [_longer, _later, _in_place_under_the_same_time, _replaced])
def test_what_somebody_changed_is_read_again(
    change: Callable[[Path], None], weights: Path, tmp_path: Path, read: list[Path]
) -> None:
    notes = tmp_path / "notes"
    before = files_sha256([weights], notes)
    change(weights)
    assert files_sha256([weights], notes) != before
    assert len(read) == 2


def test_a_hub_links_to_a_file_of_another_content_after_an_update(
    tmp_path: Path, read: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "SETTLED", -(10**9))
    notes, link = tmp_path / "notes", tmp_path / "link"
    found = []
    for name in ("one", "two"):
        blob = tmp_path / name
        blob.write_text(name)
        os.utime(blob, ns=(LONG_AGO, LONG_AGO))
        link.unlink(missing_ok=True)
        link.symlink_to(blob)
        found.append(files_sha256([link], notes))
    assert found[0] != found[1] and len(read) == 2


def test_what_was_changed_just_now_may_change_within_the_same_tick_and_is_not_noted(
    tmp_path: Path, read: list[Path]
) -> None:
    weights = tmp_path / "weights"
    weights.write_bytes(b"a" * 100)
    os.utime(weights, ns=(LONG_AGO, LONG_AGO))  # as of a file that was copied with its time
    for _ in range(2):
        files_sha256([weights], tmp_path / "notes")
    assert len(read) == 2


def test_a_note_that_is_cut_off_is_made_again(weights: Path, tmp_path: Path, read: list[Path]) -> None:
    notes = tmp_path / "notes"
    expected = files_sha256([weights], notes)
    (note,) = notes.iterdir()
    note.write_text("ab")
    assert files_sha256([weights], notes) == expected == files_sha256([weights], notes)
    assert len(read) == 2


def test_notes_that_cannot_be_written_are_done_without(weights: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.write_text("a file where a folder is to be")
    assert files_sha256([weights], notes) == files_sha256([weights])


def test_a_note_of_somebody_else_that_may_not_be_read_is_done_without(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_path: Path) -> str:
        raise PermissionError("not yours")

    expected = files_sha256([weights], tmp_path / "notes")
    monkeypatch.setattr(Path, "read_text", refuse)
    assert files_sha256([weights], tmp_path / "notes") == expected


def test_two_containers_whose_processes_have_one_number_write_the_same_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them has written and not yet renamed when the other does both."""

    def other_first(temporary: Path, note: Path) -> None:
        if not other:
            other.append(temporary)
            hashing.write_note(note, DIGEST)
        replace(temporary, note)

    other: list[Path] = []
    replace = os.replace
    monkeypatch.setattr(hashing.os, "replace", other_first)
    monkeypatch.setattr(hashing.os, "getpid", lambda: 1)
    hashing.write_note(tmp_path / "note", DIGEST)
    assert [path.name for path in tmp_path.iterdir()] == ["note"]
    assert hashing.read_note(tmp_path / "note") == DIGEST

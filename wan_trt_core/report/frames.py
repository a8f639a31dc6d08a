"""The files that a run kept beside its record: found in its folder, frames and videos put into the page or linked."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from wan_trt_core.gates.formatting import quantity
from wan_trt_core.records import CaseRecord

EMBEDDED_BYTES = 8 * 2**20
"""What the files in one page may take together (a third more as base64): the worst cases' come first, and of a case the
stills before the videos. The others are linked."""

_TYPES = {"stills": "image/png", "videos": "video/mp4"}


@dataclass(frozen=True)
class File:
    """A still or a video.

    Attributes:
        embedded: the source is the file itself, else where it is from the page.
    """

    title: str
    moving: bool
    source: str
    embedded: bool
    size: str


@dataclass(frozen=True)
class Frames:
    """What the page shows of the videos of a case; what is not there is told in the notes."""

    files: tuple[File, ...]
    notes: tuple[str, ...]


class Album:
    """The files of a run's folder, as far as one page has room for them.

    Args:
        run: the folder that paths in the record are relative to; nothing outside it is read.
        page: the folder of the page, from which links lead.
    """

    def __init__(self, run: Path, page: Path, room: int = EMBEDDED_BYTES) -> None:
        self._run, self._page, self._room = run.resolve(), page.resolve(), room

    def frames(self, case: CaseRecord) -> Frames | None:
        """What was kept of a case, ``None`` if nothing was to be."""
        kept = case.measurement.facts.get("frames")
        if not kept:
            return None
        titles = {
            "stills": f"Frame {kept['frame']} of {kept['of']}, ",
            "videos": "Video, ",
        }
        notes = [
            f"Frame {kept['frame']} has the lowest PSNR. The difference is absolute, times {kept['gain']}."
        ]
        if kept["left_out"]:
            notes.append(f"No videos were kept: {kept['left_out']}")
        files: list[File] = []
        for kind, title in titles.items():
            found = {arm: self.find(path) for arm, path in kept[kind].items()}
            notes += [f"{kept[kind][arm]} is not in the run's folder." for arm in found if found[arm] is None]
            files += self._filed(kind, title, {arm: path for arm, path in found.items() if path})
        return Frames(tuple(files), tuple(notes))

    def find(self, name: str) -> Path | None:
        """A file of the run's folder by its path there, if it is inside."""
        path = (self._run / name).resolve()
        return path if path.is_relative_to(self._run) and path.is_file() else None

    def _filed(self, kind: str, title: str, found: Mapping[str, Path]) -> Iterator[File]:
        """All of them embedded or all linked."""
        sizes = {arm: path.stat().st_size for arm, path in found.items()}
        embedded = sum(sizes.values()) <= self._room
        self._room -= sum(sizes.values()) if embedded else 0
        for arm, path in found.items():
            if embedded:
                source = f"data:{_TYPES[kind]};base64,{b64encode(path.read_bytes()).decode()}"
            else:
                source = quote(Path(os.path.relpath(path, self._page)).as_posix())
            yield File(title + arm, kind == "videos", source, embedded, quantity(sizes[arm], "B"))

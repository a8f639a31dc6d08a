"""Memory events: what a run held at every stage, and who held it, as a file (``memory_events.json``).

Everything in bytes and seconds. :mod:`wan_trt_core.measure.memory_recorder` makes the events.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from itertools import count, pairwise
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetPydanticSchema,
    ValidationError,
    model_validator,
    with_config,
)
from typing_extensions import TypedDict  # pydantic takes the standard library's from Python 3.12 on

from wan_trt_core.records import RecordError, read_json, write_json

FILE_NAME = "memory_events.json"
FORMAT: Final = "wan-trt memory events"
SCHEMA_VERSION: Final = 2

AGAIN: Final = (
    "name another file, or record the run again: wan-trt run --profile-memory does, and the memory suite"
)
"""What to do about a file that cannot be used."""

Stage = Literal[
    "build", "load", "onload", "unload", "text_encode", "denoise", "decode", "postprocess", "write", "other"
]
"""``onload``: a component that is offloaded comes to the device, because it is to run; ``unload``: it leaves, or is
closed for good. ``write`` is that of the video's file, ``other`` what runs between two stages for longer than a
moment. A stage of :data:`CALL` that another interrupts goes on afterwards: it has then two events, unless it had only
just begun."""

CALL: Final = ("text_encode", "denoise", "decode", "postprocess", "write")
"""What one video goes through, in this order; only the first may come again after a later one, with another video."""

Book = Literal["resident_set", "allocated", "reserved", "device_used"]
Place = Literal["host", "allocator", "device"]
"""Where an owner's memory lies: on the host, on the device in PyTorch's allocator, or there outside of it."""

Bytes = Annotated[int, Field(ge=0, lt=2**63)]
"""As many as there can be of any memory."""

Held = Mapping[Place, Mapping[str, Bytes]]
"""Bytes by place and owner."""

Length = Annotated[int, Field(ge=1, lt=2**16)]
"""Pixels of a side, or frames: more than a video has, few enough to reckon with."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@with_config(ConfigDict(extra="allow", allow_inf_nan=False))
class _Run(TypedDict, total=False):
    """What is read from :attr:`MemoryRecord.run`; whatever else is in it is only shown."""

    model: str
    backend: str
    height: Length
    width: Length
    num_frames: Length
    guidance_scale: float | None
    settings: dict[str, Any]
    engines: dict[str, Bytes]


def _moment(text: str) -> str:
    datetime.fromisoformat(text)
    return text


class Amounts(_Model):
    """Bytes in every book, at one moment or the most during a stage.

    Attributes:
        resident_set: of the process.
        allocated, reserved: on the device, by PyTorch's tensors and by its allocator.
        device_used: on the device, by the driver's book. All three are ``None`` where no device is watched.
    """

    resident_set: Bytes
    allocated: Bytes | None = None
    reserved: Bytes | None = None
    device_used: Bytes | None = None

    @property
    def device(self) -> bool:
        """Whether a device was watched."""
        return self.device_used is not None

    def of(self, book: Book) -> int:
        """The bytes in a book; zero where no device was watched."""
        return getattr(self, book) or 0

    def most(self, other: Amounts) -> Amounts:
        """The larger of both in every book."""
        books = {
            name: max(value, getattr(other, name)) if value is not None else None for name, value in self
        }
        return Amounts(**books)

    @model_validator(mode="after")
    def _device_whole(self) -> Amounts:
        if len({value is None for value in (self.allocated, self.reserved, self.device_used)}) > 1:
            raise ValueError("allocated, reserved and device_used are all there or none is")
        return self


class Event(_Model):
    """One stage of a run.

    Attributes:
        name: the component that is built, loaded, onloaded or unloaded.
        index: from 1, the denoising step or the latent frame that is decoded.
        start, end: seconds since the recording began. On a GPU these are the times at which work was handed over.
        before, peak, after: what was held.
        held: who held it when the stage ended, and what was gone by then as far as it was noted.
        graphs: CUDA graphs that an engine held when it ended, by its name; those without any are left out. Their
            bytes are in no owner's: no library tells them.
        lost: why the driver did not tell of the device when it ended: ``device_used`` is what it told last. Empty where
            it did.
    """

    stage: Stage
    name: str = ""
    index: int | None = Field(default=None, ge=1)
    start: float = Field(ge=0)
    end: float
    before: Amounts
    peak: Amounts
    after: Amounts
    held: Held
    graphs: Mapping[str, Annotated[int, Field(ge=1)]] = {}
    lost: str = ""

    @property
    def label(self) -> str:
        """The stage in words: ``load dit engine``, ``denoise 3``."""
        return label(self.stage, self.name, self.index)

    @model_validator(mode="after")
    def _sound(self) -> Event:
        if self.end < self.start:
            raise ValueError(f"{self.label} ends at {self.end} s, before it begins at {self.start} s")
        for amounts in (self.before, self.after):
            if amounts.device != self.peak.device:
                raise ValueError(f"{self.label} tells of a device in only some of before, peak and after")
            if self.peak.most(amounts) != self.peak:
                raise ValueError(f"the peak of {self.label} is less than what was held before or after it")
        return self


class Failure(_Model):
    """What ended a run before its time.

    Attributes:
        kind: ``cut_short``: the process was gone before it could say more, as the system kills it when memory is out.
        stage: in which it did, in words; empty between stages.
        asked: bytes that could not be had, as far as the error tells.
        amounts, held: what was held at that moment, and who held it.
    """

    kind: Literal["out_of_memory", "interrupted", "failed", "cut_short"]
    stage: str
    message: str
    asked: Bytes | None = None
    amounts: Amounts
    held: Held


class MemoryRecord(_Model):
    """The memory events of one run.

    Attributes:
        run: what ran (model, backend, sizes, steps …).
        methods: how each book was read, where that limits what it tells.
        precisions: of the weights, by owner: ``fp32`` or ``bf16``, of a module in older files ``float32``.
        failure: ``None`` for a run that came to its end.
    """

    format: Literal["wan-trt memory events"] = FORMAT
    schema_version: Literal[2] = SCHEMA_VERSION
    started: Annotated[str, AfterValidator(_moment)]
    command: tuple[str, ...]
    hardware_key: str
    run: Annotated[dict[str, Any], GetPydanticSchema(lambda _, handler: handler(_Run))]
    methods: dict[str, str]
    precisions: dict[str, str]
    events: tuple[Event, ...]
    failure: Failure | None = None

    @property
    def book(self) -> Book:
        """The book that decides whether a run fits: of the device, or of the host where there is none."""
        first = self.events[0].before if self.events else self.failure and self.failure.amounts
        return "device_used" if first and first.device else "resident_set"

    def of(self, stage: Stage) -> tuple[Event, ...]:
        """The events of one stage."""
        return tuple(event for event in self.events if event.stage == stage)

    def write(self, path: Path) -> None:
        """Write as JSON, atomically."""
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def read(cls, path: Path) -> MemoryRecord:
        """Read and validate.

        Raises:
            RecordError: when the file is missing, no JSON, foreign, of another schema, has a wrong or unknown key, or
                events out of order. The message names the file and the key, and says what to do.
        """
        try:
            data = read_json(path, "file of memory events")
        except RecordError as error:
            raise RecordError(f"{error}; {AGAIN}") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise RecordError(f"{path}: no file of memory events (its format is not {FORMAT!r}); {AGAIN}")
        if (version := data.get("schema_version")) != SCHEMA_VERSION:
            raise RecordError(
                f"{path}: schema_version {version!r}, this version reads {SCHEMA_VERSION};"
                f" read it with the version that wrote it, or {AGAIN}"
            )
        try:
            return cls.model_validate_json(json.dumps(data), strict=True)  # of JSON: its lists are tuples too
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"])) or "events"
            told = first["msg"].removeprefix("Value error, ")
            raise RecordError(f"{path}: {key}: {told}; {AGAIN}") from error

    @model_validator(mode="after")
    def _in_order(self) -> MemoryRecord:
        for problem in _disorder(self.events):
            raise ValueError(problem)
        return self


def events_file(case: str) -> str:
    """Where a case of the memory suite has the events of its run, in the report's folder."""
    return f"memory/{case}/{FILE_NAME}"


def run_folder(parent: Path, name: str, at: datetime) -> Path:
    """Make a folder for one run, which no other run has: ``video-20261122T004956Z``, and ``video-20261122T004956Z-2``
    for a second one at the same time.

    Args:
        name: what the run is called, as its video.
        at: when it began, with its time zone.

    Raises:
        OSError: when it cannot be made.
    """
    parent.mkdir(parents=True, exist_ok=True)
    began = f"{name}-{at.astimezone(UTC):%Y%m%dT%H%M%SZ}"
    for number in count(1):
        folder = parent / (began if number == 1 else f"{began}-{number}")
        with suppress(FileExistsError):
            folder.mkdir()
            break
    return folder


def label(stage: Stage, name: str = "", index: int | None = None) -> str:
    """A stage in words."""
    return " ".join(filter(None, (stage.replace("_", " "), name, str(index or ""))))


def _disorder(events: tuple[Event, ...]) -> Iterator[str]:
    """What is out of order. A recorder leaves no gap: what an event begins with is the look that ended the last."""
    of_call: Event | None = None  # the last of a stage that others may interrupt
    for before, event in pairwise(events):
        if event.start < before.end:
            yield (
                f"events out of order: {event.label} begins at {event.start} s, but {before.label}, which stands"
                f" before it, ends at {before.end} s"
            )
        if before.stage in CALL:
            of_call = before
        if _too_early(event, of_call, interrupted=of_call is not before):
            yield f"events out of order: {event.label} follows {(of_call or before).label}"
        if event.before.device != before.before.device:
            yield f"{event.label} and {before.label} do not both tell of a device"
        if event.before != before.after:
            yield (
                f"events out of order: {event.label} begins with other amounts than {before.label}, which stands"
                " before it, ends with"
            )


def _too_early(event: Event, last: Event | None, *, interrupted: bool) -> bool:
    """Whether a stage of a video, or a step of one, comes where another should.

    Args:
        last: of the stages of a video; ``interrupted`` by what stands between, it may go on.
    """
    if event.stage not in CALL or event.stage == CALL[0]:
        return False
    if last is not None and CALL.index(event.stage) < CALL.index(last.stage):
        return True
    done = (last.index or 0) if last and last.stage == event.stage else 0
    return event.index not in (None, done + 1) and not (interrupted and event.index == done)

"""What would lower the peak of a recorded run, what that saves, and what it costs.

Every saving is modelled from the events alone: the peak of each stage less what would not have been held then; the
saving is how far the highest of them comes down. So what is held outside the stage that peaks saves nothing, and what
two changes save does not add up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from wan_trt_core.gates.formatting import quantity
from wan_trt_core.measure.memory_events import Book, Event, Held, MemoryRecord, Place, Stage

USED_IN: Mapping[str, Stage] = {
    "text_encoder": "text_encode",
    "transformer": "denoise",
    "transformer_2": "denoise",
    "dit": "denoise",
    "dit_2": "denoise",
    "vae": "decode",
    "vae_decoder_first": "decode",
    "vae_decoder_next": "decode",
}
"""The stage that a component's weights are needed in."""

REPLACED = {
    "transformer": "dit engine",
    "transformer_2": "dit_2 engine",
    "vae": "vae_decoder_next engine",
    "text_encoder": "text_encoder engine",
}
"""Modules that nothing runs where that engine is loaded."""

WHOLE_ONLY = ("vae_decoder_first", "vae_decoder_next")
"""Engines that are not advised to be in half precision: TensorRT 10.6 sums the products of such convolutions in half
precision too, 49.5 dB from float32 on an H200, where the parity suite asks for 60 (docs/performance.md)."""

TILES = 4
"""Tiles that a decode is modelled in, half as wide and half as high."""

_WHOLE = ("float32", "fp32")
PLACES: Mapping[Book, tuple[Place, ...]] = {"device_used": ("allocator", "device"), "resident_set": ("host",)}
"""Where that lies which counts in the book that decides."""


@dataclass(frozen=True)
class Advice:
    """A change that would lower the peak.

    Attributes:
        saves: bytes off the peak, modelled.
        derived: how the saving was found.
        costs: in words.
        seconds: that it costs a video, where they were measured.
    """

    what: str
    saves: int
    derived: str
    costs: str
    seconds: float | None = None


def owners(held: Held, place: Place) -> list[tuple[str, int]]:
    """Who holds how many bytes in a place."""
    return list(held.get(place, {}).items())


def rank(advice: Advice) -> tuple[bool, float]:
    """Known costs before unknown ones; then by bytes a second of cost, or by bytes."""
    if advice.seconds is None:
        return True, -advice.saves
    return False, -advice.saves / advice.seconds if advice.seconds else float("-inf")


def advice_on(record: MemoryRecord) -> Iterator[Advice]:
    """Every change that is known of, whatever it saves here."""
    seconds = {event.name: event.end - event.start for event in record.of("load")}
    yield Advice(
        "build engines beforehand (wan-trt build), or run again: the cache has them now",
        _saving(record, lambda event: event.peak.of(record.book) if event.stage == "build" else 0),
        "the peak of every stage but the building",
        "nothing: an engine is built once",
        0.0,
    )
    yield from _only_in_its_stage(record, seconds)
    if record.book == "device_used":
        yield from _on_the_device(record)
    yield from _smaller_weights(record)
    yield from _tiles(record)


def _saving(record: MemoryRecord, less: Callable[[Event], float]) -> int:
    """How far the peak of the run comes down where each stage's is lower by ``less``."""
    book = record.book
    lower = max(event.peak.of(book) - less(event) for event in record.events)
    return round(max(event.peak.of(book) for event in record.events) - lower)


def _only_in_its_stage(record: MemoryRecord, seconds: Mapping[str, float]) -> Iterator[Advice]:
    """Hold weights only while the stage runs that needs them; never those that nothing runs."""
    loaded = {event.name for event in record.of("load")}
    unused = {part for part, engine in REPLACED.items() if {part, engine} <= loaded}
    groups: dict[Stage | None, list[str]] = {}
    for name in sorted(loaded):
        stage = None if name in unused else USED_IN.get(name.removesuffix(" engine"))
        if stage is not None or name in unused:
            groups.setdefault(stage, []).append(name)

    def idle(names: list[str], stage: Stage | None) -> Callable[[Event], float]:
        def size(event: Event) -> float:
            busy = event.stage == stage or event.name in names
            return 0 if busy else _weights(record, event, names)

        return size

    singles = {stage: idle(names, stage) for stage, names in groups.items()}
    device = record.book == "device_used"
    where = (
        ", give it back to the driver and load it then or keep it in host memory"
        if device
        else ", load it then"
    )
    for stage, names in groups.items():
        listed = ", ".join(names)
        if stage is None:
            yield Advice(
                f"let go of {listed}: engines do its work",
                _saving(record, singles[stage]),
                "the peak of every stage less these weights",
                "nothing: no stage runs it",
                0.0,
            )
            continue
        again = sum(seconds[name] for name in names)
        yield Advice(
            f"hold {listed} only for {stage.replace('_', ' ')}{where}",
            _saving(record, singles[stage]),
            f"the peak of every other stage less its weights ({_size(record, names)})",
            f"at most {again:.3g} s a video: the time that loading took, measured",
            again,
        )
    if len(groups) > 1:
        again = sum(seconds[name] for names in groups.values() for name in names)
        yield Advice(
            f"all of these: hold every component only for its own stage{where}",
            _saving(record, lambda event: sum(less(event) for less in singles.values())),
            "the peak of every stage less the weights of the components that it does not use",
            f"at most {again:.3g} s a video: the time that loading took, measured",
            again,
        )


def _on_the_device(record: MemoryRecord) -> Iterator[Advice]:
    encoder = [event.name for event in record.of("load") if event.name.startswith("text_encoder")]
    if encoder:
        yield Advice(
            "run the text encoder on the CPU",
            _saving(record, lambda event: _weights(record, event, encoder)),
            f"the peak of every stage less its weights ({_size(record, encoder)})",
            "a slower text encode, not measured",
        )
    yield Advice(
        "let PyTorch's allocator give back what holds no tensor (expandable segments, or empty_cache between stages)",
        _saving(record, lambda event: event.peak.of("reserved") - event.peak.of("allocated")),
        "the peak of every stage less reserved and not allocated: what remains is at least this",
        "allocations anew after each release, not measured",
    )


def _smaller_weights(record: MemoryRecord) -> Iterator[Advice]:
    for event in record.of("load"):
        whole_only = event.name.removesuffix(" engine") in WHOLE_ONLY
        if record.precisions.get(f"{event.name} weights") in _WHOLE and not whole_only:
            yield _precision(record, event.name, "in half precision", 1 / 2)
    for event in record.of("load"):
        if event.name == "text_encoder":
            whole = record.precisions.get("text_encoder weights") in _WHOLE
            yield _precision(record, event.name, "in INT8", 3 / 4 if whole else 1 / 2)


def _precision(record: MemoryRecord, name: str, form: str, share: float) -> Advice:
    return Advice(
        f"{name} {form}",
        _saving(record, lambda event: share * _weights(record, event, [name])),
        f"the peak of every stage less {share:.0%} of its weights ({_size(record, [name])}); parts that must stay"
        " in float32 would save nothing",
        "accuracy: the parity suite says how much",
    )


def _tiles(record: MemoryRecord) -> Iterator[Advice]:
    """Of the stock VAE, which alone can decode in tiles."""
    sizes = [record.run.get(name) for name in ("height", "width", "num_frames")]
    stock = any(event.name == "vae" for event in record.of("load"))
    replaced = any(event.name == REPLACED["vae"] for event in record.of("load"))
    decode = record.of("decode")
    if not (decode and stock and not replaced and all(isinstance(size, int) for size in sizes)):
        return
    height, width, frames = (int(size or 0) for size in sizes)
    video, book = 3 * height * width * frames * 4, record.book

    def less(event: Event) -> float:
        own = event.peak.of(book) - decode[0].before.of(book) - video
        return (1 - 1 / TILES) * max(0, own) if event.stage == "decode" else 0

    yield Advice(
        f"decode in {TILES} tiles",
        _saving(record, less),
        "the peak of the decode less 3/4 of what it holds above its beginning and the video itself"
        f" ({quantity(video, 'B')}), as activations go with the area; tiles overlap, so a little less",
        "a longer decode, as tiles overlap, and other pixels at the seams, neither measured",
    )


def _weights(record: MemoryRecord, event: Event, names: list[str]) -> int:
    """Bytes of the weights of components that are held during an event, in the book that decides."""
    wanted = {f"{name} weights" for name in names}
    return sum(
        size for place in PLACES[record.book] for owner, size in owners(event.held, place) if owner in wanted
    )


def _size(record: MemoryRecord, names: list[str]) -> str:
    return quantity(max(_weights(record, event, names) for event in record.events), "B")

"""What would lower the peak of a recorded run, what that saves, and what it costs.

Every saving is modelled from the events alone: the peak of each stage less what would not have been held then; the
saving is how far the highest of them comes down. So what is held outside the stage that peaks saves nothing, and what
two changes save does not add up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median_low
from typing import Any

from wan_trt_core.gates.formatting import quantity
from wan_trt_core.measure.memory_events import Amounts, Book, Event, Held, MemoryRecord, Place, Stage
from wan_trt_core.memory.measured import (
    BUS,
    INT8_SECONDS,
    LEAN_SCRATCH,
    ONE_GRAPH,
    ONE_GRAPH_TIME,
    PROMPT,
    SINGLE_SCRATCH,
    SLICES,
    SLICES_TIME,
    STREAM_SHOWN,
    STREAMED_SCRATCH,
    TILE_PIXEL,
    decode_seconds,
    encode_seconds,
    lean_seconds,
    shown_of_streaming,
    single_seconds,
)
from wan_trt_core.models.profiles import tiles_of

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

TILE = 256
STEP = 64
"""Pixels a side of the tiles that a decode is modelled in; of a video that is no larger about half its longer side, in
the steps that the setting takes."""

WITHOUT_TILES = "ti2v-5b"
"""In the names of models whose engines decode no tiles: a latent of theirs covers more pixels."""

SHARED = "engines' shared scratch"
OWN = " own_scratch"
CACHES = " caches"
"""Owners, or how their names end."""

_WHOLE = ("fp32", "float32")  # older events name a module's as PyTorch does
_HALF = ("bf16", "bfloat16", "fp16", "float16")
_BF16 = ("bf16", "bfloat16")
_INT8 = "int8"
PLACES: Mapping[Book, tuple[Place, ...]] = {"device_used": ("allocator", "device"), "resident_set": ("host",)}
"""Where that lies which counts in the book that decides."""


@dataclass(frozen=True)
class Advice:
    """A change that would lower the peak.

    Attributes:
        saves: bytes off the peak, modelled.
        derived: how the saving was found.
        costs: in words.
        seconds: that it costs a video, where they are known: measured in this run, or modelled.
        measured: bytes that it saved on an H200, where no event tells what it saves here: ``saves`` is then at stake.
        fits: whether with it there was room for what a run asked for that ended out of memory; None where that is not
            known, or there was no such end.
    """

    what: str
    saves: int
    derived: str
    costs: str
    seconds: float | None = None
    measured: float | None = None
    fits: bool | None = None

    @property
    def modelled(self) -> bool:
        """Whether ``saves`` is what it saves, by the events."""
        return self.measured is None


def owners(held: Held, place: Place) -> list[tuple[str, int]]:
    """Who holds how many bytes in a place."""
    return list(held.get(place, {}).items())


def held_at_peak(record: MemoryRecord, index: int) -> Held:
    """Who held memory at the peak of an event: owners are noted at its end, which for an unloading is too late."""
    event = record.events[index]
    return record.events[index - 1].held if event.stage == "unload" and index else event.held


def rank(advice: Advice) -> tuple[bool, bool, float]:
    """What must be measured last; known costs before unknown ones; then by bytes a second of cost, or by bytes."""
    if advice.seconds is None:
        return not advice.modelled, True, -advice.saves
    rate = advice.saves / advice.seconds if advice.seconds else float("inf")
    return not advice.modelled, False, -rate


def advice_on(record: MemoryRecord) -> Iterator[Advice]:
    """Every change that is known of, whatever it saves here."""
    events = (
        event.model_copy(update={"held": held_at_peak(record, index)})
        for index, event in enumerate(record.events)
    )
    record = record.model_copy(update={"events": tuple(events)})
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
    if record.book == "device_used":
        yield from _of_engines(record)
    yield from _slices(record)


def _saving(record: MemoryRecord, less: Callable[[Event], float]) -> int:
    """How far the peak of the run comes down where each stage's is lower by ``less``."""
    book = record.book
    lower = max(event.peak.of(book) - less(event) for event in record.events)
    return round(max(event.peak.of(book) for event in record.events) - lower)


def _only_in_its_stage(record: MemoryRecord, seconds: Mapping[str, float]) -> Iterator[Advice]:
    """Hold weights only while the stage runs that needs them; never those that nothing runs."""
    loaded = {event.name for event in record.of("load")}
    held = {part for part in REPLACED if any(_weights(record, event, [part]) for event in record.events)}
    unused = {part for part in held if REPLACED[part] in loaded}  # loaded for an export, maybe in its build
    groups: dict[Stage | None, list[str]] = {}
    for name in sorted(loaded | unused):
        stage = None if name in unused else USED_IN.get(name.removesuffix(" engine"))
        if stage is not None or name in unused:
            groups.setdefault(stage, []).append(name)

    def idle(names: list[str], stage: Stage | None) -> Callable[[Event], float]:
        def size(event: Event) -> float:
            # not while it is unloaded: it would be gone by then
            busy = event.stage == (stage or "build") or (event.name in names and event.stage != "unload")
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
        again = sum(seconds[name] for stage, names in groups.items() if stage for name in names)
        yield Advice(
            f"all of these: hold every component only for its own stage{where}",
            _saving(record, lambda event: sum(less(event) for less in singles.values())),
            "the peak of every stage less the weights of the components that it does not use",
            f"at most {again:.3g} s a video: the time that loading took, measured",
            again,
        )


def _on_the_device(record: MemoryRecord) -> Iterator[Advice]:
    encoder = [event.name for event in record.of("load") if event.name.startswith("text_encoder")]
    if encoder and _setting(record, "pipeline.text_encoder_device") != "cpu":
        seconds = _encode_seconds(record, encoder)
        slower = "a slower text encode" + (
            "" if seconds is None else f", {seconds:.2g} s a video, modelled by an H200's host"
        )
        yield Advice(
            "run the text encoder on the CPU",
            _saving(record, lambda event: _weights(record, event, encoder)),
            f"the peak of every stage less its weights ({_size(record, encoder)})",
            f"{slower}; and in BF16 another rounding: of the published one 29.8 dB from the GPU's video were measured"
            " (random weights)",
            seconds,
        )
    yield Advice(
        "let PyTorch's allocator give back what holds no tensor (expandable segments, or empty_cache between stages)",
        _saving(record, lambda event: event.peak.of("reserved") - event.peak.of("allocated")),
        "the peak of every stage less reserved and not allocated: what remains is at least this",
        "allocations anew after each release, not measured",
    )


def _encode_seconds(record: MemoryRecord, encoder: list[str]) -> float | None:
    """Of two prompts on the host, as the plan has it; None where nothing tells the precision."""
    precisions = {record.precisions.get(f"{name} weights") for name in encoder}
    sizes = [size for names, size in ((_WHOLE, 4), (_HALF, 2), ((_INT8,), 1)) if precisions & {*names}]
    if len(sizes) != 1:
        return None
    weights = max(_weights(record, event, [name]) for name in encoder for event in record.events)
    tokens = int(record.run.get("max_sequence_length") or PROMPT)
    return encode_seconds(weights / sizes[0], tokens, in_bf16=bool(precisions & {*_BF16, _INT8}))


def _smaller_weights(record: MemoryRecord) -> Iterator[Advice]:
    for event in record.of("load"):
        whole_only = event.name.removesuffix(" engine") in WHOLE_ONLY
        if record.precisions.get(f"{event.name} weights") in _WHOLE and not whole_only:
            yield _precision(
                record, event.name, "in half precision", 1 / 2, "accuracy: the parity suite says how much"
            )
    encoder = record.precisions.get("text_encoder weights")
    if encoder != _INT8 and any(event.name == "text_encoder" for event in record.of("load")):
        costs, seconds = "rounding: 25.2 dB from BF16's video were measured with random weights", None
        if record.book == "device_used":  # on a CPU it was not measured
            costs, seconds = f"{costs}; {INT8_SECONDS:.2g} s a video, an H200's", INT8_SECONDS
        share = 3 / 4 if encoder in _WHOLE else 1 / 2
        yield _precision(record, "text_encoder", "in INT8", share, costs, seconds)


def _precision(
    record: MemoryRecord, name: str, form: str, share: float, costs: str, seconds: float | None = None
) -> Advice:
    return Advice(
        f"{name} {form}",
        _saving(record, lambda event: share * _weights(record, event, [name])),
        f"the peak of every stage less {share:.0%} of its weights ({_size(record, [name])}); parts that must stay"
        " in float32 would save nothing",
        costs,
        seconds,
    )


# ---- the decode -------------------------------------------------------------------------------------------------


def _tiles(record: MemoryRecord) -> Iterator[Advice]:
    """Activations, caches and scratch memory go with the area that is decoded at once."""
    if not record.of("decode") or not (video := _video(record)):
        return
    if _setting(record, "pipeline.vae_tile") is not None or record.of("decode")[0].index is None:
        return  # tiles cannot be told apart: such a decode is one stage
    engines = any(event.name == REPLACED["vae"] for event in record.of("load"))
    if engines and WITHOUT_TILES in str(record.run.get("model")):
        return
    height, width, frames = video
    longer = max(height, width)
    if record.book != "device_used" and longer < TILE:
        # as the plan, which has no tiles for small videos: malloc keeps more of such tiles than they save, 387 MiB for
        # the 317 of a whole decode of 128x128; from 256x256 on they save, 366 for 492 (docs/memory.md)
        return
    tile = TILE if longer > TILE else max(1, longer // 2 // STEP) * STEP
    if tile >= longer:
        return
    share = min(tile, height) * min(tile, width) / (height * width)
    heights, widths = tiles_of(height, width, tile)
    covered = sum(heights) * sum(widths) / (height * width)
    costs, seconds = f"other pixels at the seams, and {covered:.3g} times the pixels to decode", None
    if engines and record.book == "device_used":
        less = _of_decoder(record, share, share)
        derived = "caches and scratch memory of the decoder go with the area of a tile"
        seconds = decode_seconds(*video) * (TILE_PIXEL * covered - 1)
        costs += f": {seconds:.2g} s a video, modelled by an H200's"
    else:
        less = _above_the_beginning(record, share)
        derived = "of what the decode holds above its beginning and the video"
        costs += ", not measured"
    yield Advice(
        f"decode in tiles of {tile} pixels {_by(record, 'pipeline.vae_tile')}",
        _saving(record, less),
        f"{derived}: {share:.1%} remain; the video itself does ({quantity(_video_bytes(height, width, frames), 'B')})",
        costs,
        seconds,
    )


def _of_engines(record: MemoryRecord) -> Iterator[Advice]:
    """What only engines on a device can do."""
    video = _video(record)
    loaded = {event.name for event in record.of("load")}
    if REPLACED["vae"] in loaded and record.of("decode") and video:
        if not _setting(record, "pipeline.vae_lean"):
            whole = record.precisions.get(f"{REPLACED['vae']} weights") in _WHOLE
            more = lean_seconds(*video)
            yield Advice(
                f"the lean decoder {_by(record, 'pipeline.vae_lean')}",
                _saving(record, _of_decoder(record, 1 / 2 if whole else 1, LEAN_SCRATCH)),
                f"{'half the caches' if whole else 'the caches as they are'} and {LEAN_SCRATCH:.0%} of the decoder's"
                " scratch memory remain, as measured on an H200",
                f"caches are rounded to half precision; {more:.2g} s a video, modelled by an H200's",
                more,
            )
        if _setting(record, "pipeline.vae_frames_per_step") == 2:
            more = single_seconds(*video)
            yield Advice(
                "one latent frame a step (pipeline.vae_frames_per_step)",
                _saving(record, _of_decoder(record, 1, SINGLE_SCRATCH)),
                f"{SINGLE_SCRATCH:.0%} of the decoder's scratch memory remain, as measured on an H200",
                f"{more:.2g} s a video, modelled by an H200's",
                more,
            )
    yield Advice(
        "share scratch memory between engines (tensorrt.share_scratch)",
        _saving(record, lambda event: _beyond_the_largest(_sizes(event, OWN))),
        "the peak of every stage less all scratch memory but the largest engine's",
        "nothing: engines run one after the other",
        0.0,
    )
    if str(record.run.get("backend")) == "tensorrt":
        yield from _streamed(record)
        yield from _graphs(record)


def _of_decoder(record: MemoryRecord, caches: float, scratch: float) -> Callable[[Event], float]:
    """What is not held where the decoder's caches and its scratch memory are but a part of what they were. Scratch
    memory that is shared stays as large as the others need it."""
    decode = record.of("decode")
    index = record.events.index(decode[0])
    before = record.events[index - 1] if index else None
    others = sum(_sizes(before, SHARED)) if before else 0

    def own(event: Event) -> float:
        shared = sum(_sizes(event, SHARED))
        alone = sum(
            size for name, size in owners(event.held, "allocator") if "vae" in name and name.endswith(OWN)
        )
        lent = shared - min(shared, max(scratch * shared, others))
        return (1 - caches) * _caches(record, event, before) + lent + (1 - scratch) * alone

    return _and_afterwards(record, own)


def _and_afterwards(record: MemoryRecord, own: Callable[[Event], float]) -> Callable[[Event], float]:
    """What a decode and all after it would not hold, where a decode holds so much less: on a device PyTorch's
    allocator keeps of it what no other stage needs. A process is not known to."""
    decode, device = record.of("decode"), record.book == "device_used"
    kept = max(event.peak.of("reserved") - own(event) for event in decode)

    def less(event: Event) -> float:
        if event.stage == "decode":
            return own(event)
        if not device or event.start < decode[0].start:
            return 0
        reserved, allocated = event.peak.of("reserved"), event.peak.of("allocated")
        return max(0, min(reserved - kept, reserved - allocated + own(event)))

    return less


def _caches(record: MemoryRecord, event: Event, before: Event | None) -> int:
    """Bytes of the decoder's caches: as they are told, else what nobody claims in a decode and did not before it,
    without the video."""
    told = sum(_sizes(event, CACHES))
    if told or event.stage != "decode" or not (video := _video(record)):
        return told
    height, width, frames = video
    unclaimed = event.peak.of("allocated") - sum(size for _, size in owners(event.held, "allocator"))
    if before:
        unclaimed -= before.after.of("allocated") - sum(size for _, size in owners(before.held, "allocator"))
    return max(0, unclaimed - _video_bytes(height, width, frames))


def _above_the_beginning(record: MemoryRecord, share: float) -> Callable[[Event], float]:
    """Of what a decode holds above its beginning and the video, all but a share."""
    height, width, frames = _video(record) or (0, 0, 0)
    held = record.of("decode")[0].before.of(record.book) + _video_bytes(height, width, frames)

    def own(event: Event) -> float:
        return (1 - share) * max(0, event.peak.of(record.book) - held) if event.stage == "decode" else 0

    return _and_afterwards(record, own)


def _video(record: MemoryRecord) -> tuple[int, int, int] | None:
    """Height, width and frames, where the run tells all."""
    height, width, frames = (record.run.get(name) for name in ("height", "width", "num_frames"))
    if isinstance(height, int) and isinstance(width, int) and isinstance(frames, int):
        return height, width, frames
    return None


def _video_bytes(height: int, width: int, frames: int) -> int:
    """Of a decoded video: three colours in float32."""
    return 3 * height * width * frames * 4


# ---- engines and transformers ----------------------------------------------------------------------------------


def _streamed(record: MemoryRecord) -> Iterator[Advice]:
    """The weights of the DiT's engines from host memory, none of them kept."""
    names = [f"{name} engine" for name in ("dit", "dit_2")]
    names = [name for name in names if any(event.name == name for event in record.of("load"))]
    if not names or _setting(record, "tensorrt.weight_streaming_budget_gib") is not None:
        return

    denoising = record.of("denoise")
    lent = max((sum(_sizes(event, SHARED)) for event in denoising), default=0)

    def less(event: Event) -> float:
        """Scratch memory for streaming counts from the denoising on, unless another engine has it grown further."""
        weights = [_weights(record, event, [name]) for name in names]
        if not denoising or event.start < denoising[0].start:
            return sum(weights)
        needs = STREAMED_SCRATCH * (sum if _sizes(event, OWN) else max)(weights)
        return sum(weights) - max(0, needs - (sum(_sizes(event, SHARED)) - lent))

    guided = float(record.run.get("guidance_scale") or 0) > 1
    largest = max(_weights(record, event, [name]) for name in names for event in record.events)
    calls = 2 if guided else 1  # in a step
    steps = len({event.index for event in denoising})  # one that is interrupted has two events
    # the first step captures graphs; where the host is ahead of the GPU the others seem shorter, and hide less
    later = [event.end - event.start for event in denoising if event.index != denoising[0].index]
    seconds = steps * calls * shown_of_streaming(largest / BUS, median_low(later) / calls if later else 0.0)
    yield Advice(
        f"stream the weights of {' and '.join(names)} {_by(record, 'tensorrt.weight_streaming')}",
        _saving(record, less),
        f"a budget of 0: the peak of every stage less these weights ({_size(record, names)}); scratch memory grew by"
        f" {STREAMED_SCRATCH:.0%} of them on an H200, which counts unless another engine needs as much",
        f"at most {seconds:.2g} s a video: of the weights' way over the bus in every call, at an assumed 25 GB/s, what"
        f" a call of this run cannot hide, and {STREAM_SHOWN:.0%} of it at least",
        seconds,
    )


def _graphs(record: MemoryRecord) -> Iterator[Advice]:
    if _setting(record, "tensorrt.max_graphs") == 1:
        return
    first = _cuda(record.events[0].before, record.events[0].held if record.events[0].stage != "load" else {})
    held: int = max(sum(event.graphs.values()) for event in record.events)
    yield Advice(
        f"keep fewer CUDA graphs (tensorrt.max_graphs){f': up to {held} were held' if held else ''}",
        _saving(record, lambda event: max(0, _cuda(event.peak, event.held) - first)),
        "what CUDA has taken since the beginning beside PyTorch and the engines, kernels and graphs",
        "those that were dropped are captured again: one graph at a time took a decode of 81 frames on an H200"
        f" {ONE_GRAPH_TIME - 1:.1%} longer",
        measured=ONE_GRAPH,
    )


def _cuda(amounts: Amounts, held: Held) -> int:
    """What the device holds that is neither PyTorch's nor told by an owner."""
    outside = sum(size for _, size in owners(held, "device"))
    return amounts.of("device_used") - amounts.of("reserved") - outside


def _slices(record: MemoryRecord) -> Iterator[Advice]:
    """Of attention, where PyTorch runs the transformer."""
    loaded = {event.name for event in record.of("load")}
    stock = [
        part for part in ("transformer", "transformer_2") if part in loaded and REPLACED[part] not in loaded
    ]
    set_already = _setting(record, "pipeline.attention_slicing") is not None
    if not stock or set_already or record.run.get("backend") == "torch-compile":
        return
    book: Book = "allocated" if record.book == "device_used" else record.book

    def at_work(event: Event) -> float:
        own = event.peak.of(book) - min(event.before.of(book), event.after.of(book))
        return own if event.stage == "denoise" else 0

    yield Advice(
        "attention in slices (pipeline.attention_slicing)",
        _saving(record, at_work),
        "of what a denoising step holds while it runs, the scores; with a fused kernel, as PyTorch has one for most"
        " GPUs and CPUs, there are none",
        f"more launches: tiny-wan's pipeline took {SLICES_TIME - 1:.0%} longer on an H200",
        measured=SLICES,
    )


def _beyond_the_largest(sizes: list[int]) -> int:
    return sum(sizes) - max(sizes, default=0)


# ---- what the events tell ----------------------------------------------------------------------------------------


def _setting(record: MemoryRecord, key: str) -> Any:
    """A setting of the run that is not as by default; None where it is, or where the run does not tell."""
    return (record.run.get("settings") or {}).get(key)


def _by(record: MemoryRecord, key: str) -> str:
    """The setting to change, in brackets; whether it is already, not every run tells."""
    return f"({key})" if "settings" in record.run else f"({key}, if it is not set: the events do not tell)"


def _sizes(event: Event, owner: str) -> list[int]:
    """What owners whose names end so hold in PyTorch's allocator."""
    return [size for name, size in owners(event.held, "allocator") if name.endswith(owner)]


def _weights(record: MemoryRecord, event: Event, names: list[str]) -> int:
    """Bytes of the weights of components that are held during an event, in the book that decides."""
    wanted = {f"{name} weights" for name in names}
    return sum(
        size for place in PLACES[record.book] for owner, size in owners(event.held, place) if owner in wanted
    )


def _size(record: MemoryRecord, names: list[str]) -> str:
    return quantity(max(_weights(record, event, names) for event in record.events), "B")

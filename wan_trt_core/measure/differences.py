"""What changed between two records: the kernels of one call, and who holds the memory. Pure functions."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from wan_trt_core.gates.formatting import quantity
from wan_trt_core.measure.kernels import COMPUTING, NODE, group_of, place_of
from wan_trt_core.records import OF_REFERENCE

if TYPE_CHECKING:
    from wan_trt_core.records import Measurement

LOST = 0.5
"""An engine that spends less than this part of the time in fused attention than another has lost a fusion."""

PRECISIONS: tuple[tuple[str, str], ...] = (
    ("fp8", r"e4m3|e5m2|fp8|nvjet_(sm\d+_)?qq"),
    ("bf16", r"bf16|bfloat16|nvjet_(sm\d+_)?ts"),
    ("tf32", r"tf32"),
    ("fp16", r"f16|fp16|half|s16816gemm|nvjet_(sm\d+_)?hs"),
    ("fp32", r"f32f32|fp32|sgemm|float|simt|ffma|nvjet_(sm\d+_)?ss"),
)
"""Precision of a kernel's factors and the pattern of the names that tell it; the first that is found counts."""

ACCOUNTS = 0.2
"""A part is named as the one that holds more memory from this share of the whole change on; below, it is no cause."""

SLOWER = 1.02
"""A call is slower from this many times the other's time on; of less, two runs cannot tell where it went."""

FEW = 3
"""Modules that are named; the tables have all."""

TOTALS = ("device_used", "resident_set_peak")
"""What a case uses at most, on the device or else on the host: the first that a record has."""

STAGES = ("text_encode", "denoise", "decode", "postprocess")
"""Parts of a whole run whose peaks a memory record of a pipeline has, as ``decode.device_used``."""

_FUSED = re.compile(r"Simplified|Fused|Fast|Quick|Skip|Bias|\w*Attention")
"""Operators that ONNX Runtime makes of several."""

_HASH = re.compile(r"_?0x[0-9a-f]{8,}")


@dataclass(frozen=True)
class Change:
    """A quantity in both records; zero where one has nothing of the name."""

    name: str
    before: float
    after: float

    @property
    def added(self) -> float:
        """How much more it is."""
        return self.after - self.before


@dataclass(frozen=True)
class KernelDifference:
    """Two breakdowns of :func:`wan_trt_core.measure.kernels.breakdown`, in milliseconds.

    Attributes:
        groups: what got slower by most first.
        kernels: the same by name, without what only one build's names have in them. Of each record the costliest are
            known by name: one that is missing here may be among the others.
        layers: the same by layer of TensorRT's engines, where both records have them.
        precisions: time in products, convolutions and attention by the precision that their names tell.
        fusion: what happened to fused attention, in words; empty if nothing.
    """

    total: Change
    groups: tuple[Change, ...]
    kernels: tuple[Change, ...]
    layers: tuple[Change, ...]
    precisions: tuple[Change, ...]
    fusion: str

    @property
    def precision(self) -> str:
        """Which precision took over from which, in words; empty if none."""
        if moved_layers := _dtypes_changed(self.layers):
            return f"precision changed {moved_layers}"
        limit = 0.05 * sum(change.before for change in self.precisions)
        moved = [change for change in self.precisions if abs(change.added) > limit]
        lost = [change for change in moved if change.added < 0 and change.after < LOST * change.before]
        won = [change for change in moved if change.added > 0 and change.before < LOST * change.after]
        if not (lost and won):
            return ""
        return f"precision changed from {_names(lost)} to {_names(won)}"

    def describe(self) -> str:
        """The answer in one line."""
        told = [self.fusion, self.precision]
        sign = 1 if self.total.added >= 0 else -1
        most = max(self.groups, key=lambda change: sign * change.added)
        if sign * most.added > 0:
            told.insert(
                0,
                f"{_part(most, self.total)} in {most.name} ({_signed(most.added)}{self._where(most, sign)})",
            )
        return "; ".join(filter(None, (_verdict(self.total), *told)))

    def _where(self, group: Change, sign: int) -> str:
        """The module that at least half of a group's change is in, where modules are known."""
        added: defaultdict[str, float] = defaultdict(float)
        for change in self.layers or self.kernels:
            if group_of(change.name) == group.name:
                added[place_of(change.name)[1]] += sign * change.added
        added.pop("", None)
        module = max(added, key=added.__getitem__, default="")
        if not module or 2 * added[module] < sign * group.added:
            return ""
        return f", of which {_signed(sign * added[module])} in {module}"


@dataclass(frozen=True)
class MemoryDifference:
    """Two memory records, in bytes; who holds more by most first.

    Attributes:
        stages: the peaks of the stages of a whole run, where both records have them.
    """

    total: Change
    owners: tuple[Change, ...]
    stages: tuple[Change, ...] = ()

    def describe(self) -> str:
        """The answer in one line."""
        word = "more" if self.total.added >= 0 else "less"
        ends = (quantity(value, "B") for value in (self.total.before, self.total.after))
        line = f"{quantity(abs(self.total.added), 'B')} {word} {self.total.name} ({' → '.join(ends)})"
        sign = 1 if self.total.added >= 0 else -1
        highest = max(self.stages, key=lambda stage: stage.after, default=None)
        if highest is not None:
            line += f", the most in {highest.name}"
        # of owners that hold the same the one of a single component says most, and an engine more than an allocator
        ranked = (
            (sign * change.added, "." in change.name, "engine" in change.name) for change in self.owners
        )
        _, most = max(zip(ranked, self.owners, strict=True), key=itemgetter(0), default=(None, None))
        if most is None or not self.total.added:
            return line
        if sign * most.added < ACCOUNTS * abs(self.total.added):
            return f"{line}: no known part accounts for it"
        amount = f"{'+' if most.added >= 0 else '-'}{quantity(abs(most.added), 'B')}"
        return f"{line}: {_part(most, self.total)} {most.name} ({amount})"


def kernel_difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> KernelDifference:
    """Compare two breakdowns."""
    first, second = _by_name(before["top"]), _by_name(after["top"])
    groups = _changes(before["groups_ms"], after["groups_ms"])
    told = [_by_name(arm.get("layers", ())) for arm in (before, after)]
    layers = _changes(*told) if all(told) else ()
    return KernelDifference(
        total=Change("all kernels", before["total_ms"], after["total_ms"]),
        groups=groups,
        kernels=_changes(first, second),
        layers=layers,
        precisions=_changes(_by_precision(before["top"]), _by_precision(after["top"])),
        fusion=_fusion(groups, first, second, layers),
    )


def memory_difference(before: Mapping[str, float], after: Mapping[str, float]) -> MemoryDifference:
    """Compare what owners hold.

    Args:
        before: bytes by the name of the metric, as a memory record has them.

    Raises:
        ValueError: when the records have no total in common.
    """
    total = next((name for name in TOTALS if name in before and name in after), None)
    if total is None:
        raise ValueError(f"neither {' nor '.join(TOTALS)} is in both records")
    elsewhere = "resident_set" if total == "device_used" else "device"
    peaks = {f"{stage}.{name}" for stage in STAGES for name in TOTALS}
    owners = _changes(
        *(
            {
                name: size
                for name, size in held.items()
                if name not in TOTALS and name not in peaks and not name.startswith(elsewhere)
            }
            for held in (before, after)
        )
    )
    stages = [
        Change(stage, before[peak], after[peak])
        for stage in STAGES
        if (peak := f"{stage}.{total}") in before and peak in after
    ]
    stages.sort(key=lambda stage: -stage.added)
    return MemoryDifference(Change(total, before[total], after[total]), owners, tuple(stages))


def held_by(measurement: Measurement) -> dict[str, float]:
    """What a memory measurement says of the candidate, in bytes; growth is no amount that anybody holds."""
    return {
        name: metric.value
        for name, metric in measurement.metrics.items()
        if metric.unit == "B"
        and metric.value is not None
        and "growth" not in name
        and not name.startswith(OF_REFERENCE)
    }


def precision_of_kernel(name: str) -> str | None:
    """The precision of a kernel's factors as far as its name tells."""
    for precision, pattern in PRECISIONS:
        if re.search(pattern, name, re.IGNORECASE):
            return precision
    return None


def _fusion(
    groups: Sequence[Change],
    before: Mapping[str, float],
    after: Mapping[str, float],
    layers: Sequence[Change],
) -> str:
    """Attention that is in one kernel no longer is a product, a softmax and another product; of ONNX Runtime's graph
    the fused operators that are gone."""
    # one that costs as little as what a record leaves out may be among what it leaves out
    whole = sum(group.after for group in groups)
    least = 0.0 if sum(after.values()) > 0.999 * whole else 2 * min(after.values())
    kept = _operators(after)
    gone = {op for op, ms in _operators(before).items() if _FUSED.match(op) and op not in kept and ms > least}
    if kept and gone:
        return f"fused operators are gone: {', '.join(sorted(gone))}"
    change = {group.name: group for group in groups}
    attention, products = change["attention"], change["products"]
    if attention.after < LOST * attention.before and products.added > 0:
        softmax = sum(ms for name, ms in after.items() if re.search("softmax", name, re.IGNORECASE))
        beside = f" and {softmax:.3g} ms of softmax" if softmax else ""
        gone_from = sorted(place_of(name)[1] for name in _came_and_went(layers, "attention")[1])
        where = f" in {', '.join(filter(None, gone_from))}" if any(gone_from) else ""
        instead = f"instead {_signed(products.added)} of products{beside}"
        return f"attention lost its fusion{where} ({ends(attention)}; {instead})"
    if attention.before < LOST * attention.after and products.added < 0:
        return f"attention is fused now ({ends(attention)})"
    return ""


def _dtypes_changed(layers: Sequence[Change]) -> str:
    """Where products, convolutions and attention compute in another dtype than before, in words; empty if nowhere."""
    moved: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for group in COMPUTING:
        came, went = _came_and_went(layers, group)
        now = {module: dtype for dtype, module in map(place_of, came)}
        for old, module in map(place_of, went):
            new = now.get(module)
            if old and new and old != new:
                moved[old, new].append(module or group)
    return "; ".join(
        f"from {old} to {new} in {', '.join(modules[:FEW])}"
        + (f" and {len(modules) - FEW} more" if len(modules) > FEW else "")
        for (old, new), modules in moved.items()
    )


def _came_and_went(layers: Sequence[Change], group: str) -> tuple[list[str], list[str]]:
    """The layers of a group that only the second record has, and those that only the first has."""
    those = [change for change in layers if group_of(change.name) == group]
    return [layer.name for layer in those if not layer.before], [
        layer.name for layer in those if not layer.after
    ]


def _operators(kernels: Mapping[str, float]) -> dict[str, float]:
    """Milliseconds by operator of those that are nodes of ONNX Runtime."""
    found: defaultdict[str, float] = defaultdict(float)
    for name, ms in kernels.items():
        if name.startswith(NODE):
            found[name.split()[1]] += ms
    return dict(found)


def _by_name(top: Iterable[tuple[str, float, int]]) -> dict[str, float]:
    """Milliseconds by name; the hashes in the names of TensorRT's kernels are those of one build."""
    found: defaultdict[str, float] = defaultdict(float)
    for name, ms, _ in top:
        found[_HASH.sub("", name)] += ms
    return dict(found)


def _by_precision(top: Iterable[tuple[str, float, int]]) -> dict[str, float]:
    found: defaultdict[str, float] = defaultdict(float)
    for name, ms, _ in top:
        if group_of(name) in COMPUTING:
            precision = precision_of_kernel(name)
            if precision is not None:
                found[precision] += ms
    return dict(found)


def _changes(before: Mapping[str, float], after: Mapping[str, float]) -> tuple[Change, ...]:
    changes = (Change(name, before.get(name, 0.0), after.get(name, 0.0)) for name in {**before, **after})
    return tuple(sorted(changes, key=lambda change: -change.added))


def _part(change: Change, total: Change) -> str:
    return "most of it" if 2 * abs(change.added) >= abs(total.added) else "the largest part"


def _verdict(total: Change) -> str:
    word = "slower" if total.added >= 0 else "faster"
    return f"{abs(total.added):.3g} ms {word} ({ends(total)})"


def ends(change: Change) -> str:
    """Both times in milliseconds and their ratio."""
    ratio = f", {change.after / change.before:.3g}x" if change.before else ""
    return f"{change.before:.4g} → {change.after:.4g} ms{ratio}"


def machine(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """What stock diffusers did between two breakdowns that hold its own as well, in one line."""
    total = Change("all kernels", before["reference"]["total_ms"], after["reference"]["total_ms"])
    return f"stock diffusers beside it, so the machine itself: {ends(total)}"


def slower_call(kernels: Change, before: float | None, after: float | None) -> str:
    """How much of what a call became slower its kernels account for, in one line; empty where it is hardly slower.

    Args:
        kernels: all of them, in milliseconds.
        before: a call's time, in seconds; ``None`` where it is not known.
        after: the same of the other record.
    """
    if before is None or after is None or after < SLOWER * before:
        return ""
    call = Change("call", 1e3 * before, 1e3 * after)
    share = kernels.added / call.added
    if share >= 1:
        part = "all of that"
    elif share > 0:
        part = f"{kernels.added:.3g} ms ({share:.0%}) of that"
    else:
        part = "none of that"
    where = f"{'it' if share <= 0 else 'most of it'} is outside of the kernels (host, copies, waiting)"
    line = f"a call is {_verdict(call)}; the kernels account for {part}"
    return line if share >= 0.5 else f"{line}: {where}"


def most_changed(changes: Iterable[Change], count: int) -> list[Change]:
    """Those that changed by most, in whichever direction."""
    return sorted(changes, key=lambda change: -abs(change.added))[:count]


def costliest(layers: Sequence[tuple[str, float, int]], count: int) -> list[tuple[str, float, float, int]]:
    """The layers of an engine that took longest, as a breakdown has them: what each does and the module that it came
    from, its milliseconds, its share of all layers, and its runs."""
    whole = sum(ms for _, ms, _ in layers)
    longest = sorted(layers, key=itemgetter(1), reverse=True)[:count]
    return [(name.removeprefix("layer "), ms, ms / whole, runs) for name, ms, runs in longest]


def shortened(name: str, limit: int = 44) -> str:
    """A kernel's name for people: those that C++ templates made may take lines."""
    name = re.sub(r"^void |^node |^layer |at::native::|\(anonymous namespace\)::", "", name)
    return name if len(name) <= limit else f"{name[: limit - 1]}…"


def _signed(ms: float) -> str:
    return f"{ms:+.3g} ms"


def _names(changes: Iterable[Change]) -> str:
    return " and ".join(change.name for change in changes)

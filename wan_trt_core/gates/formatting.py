"""Numbers as people read them: seconds as milliseconds, bytes as GiB or MiB, and no "0.001 > 0.001"."""

from __future__ import annotations

import math

KIB, MIB, GIB = 2**10, 2**20, 2**30
_MAX_DIGITS = 17  # a float64 is told from its neighbour by 17 significant digits


def quantity(value: float | None, unit: str, digits: int = 4) -> str:
    """``value`` (seconds, bytes, dB …) with its unit, to ``digits`` significant digits."""
    if value is None:
        return "not measured"
    scale, name = _scale(abs(value), unit)
    return _text(value / scale, digits) + (f" {name}" if name and name != "x" else name)


def pair(value: float, limit: float, unit: str, digits: int = 4) -> tuple[str, str]:
    """Both numbers in one unit, with as many digits as it takes for different numbers to look different."""
    finite = [abs(x) for x in (value, limit) if math.isfinite(x)]
    scale, name = _scale(max(finite, default=0.0), unit)
    suffix = f" {name}" if name and name != "x" else name
    for precision in range(digits, _MAX_DIGITS + 1):
        texts = _text(value / scale, precision), _text(limit / scale, precision)
        if value == limit or texts[0] != texts[1]:
            break
    else:
        texts = repr(value / scale), repr(limit / scale)
    return texts[0] + suffix, texts[1] + suffix


def _scale(magnitude: float, unit: str) -> tuple[float, str]:
    if unit == "s":
        return (1e-3, "ms") if magnitude < 10 else (1.0, "s")
    if unit == "B":
        for size, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
            if magnitude >= size:
                return size, name
        return 1.0, "B"
    return 1.0, unit


def _text(value: float, digits: int) -> str:
    if not math.isfinite(value):
        return str(value)
    text = f"{value:.{digits}g}"
    if "e+" in text:  # 1.234e+05 reads worse than 123400
        return f"{value:.0f}"
    return text

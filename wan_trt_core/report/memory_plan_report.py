"""What ``wan-trt memory plan`` says: as Markdown, as JSON's types, and the table of GPU sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wan_trt_core.gates.formatting import GIB, quantity
from wan_trt_core.memory.plan import Plan, Setting, plan
from wan_trt_core.memory.prediction import Choice, Prediction, Workload
from wan_trt_core.report.markdown import markdown_table

SURE = 0.1
"""The part by which a prediction may be off."""

SHOWN = 8
"""Settings that fit, at most: the dearer ones are not worth reading."""

GPUS = (8, 12, 16, 24, 32, 48, 80, 96, 141)
"""Sizes of the table, GiB."""


def plan_markdown(title: str, found: Plan, measured: Mapping[str, int]) -> str:
    """The prediction by stage, what each option would save, and what fits.

    Args:
        measured: peaks that are stored in baselines, bytes, by where they are from.
    """
    asked = found.asked
    tables: list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]] = [
        ("By stage", ("stage", "who", "holds", "known from"), _rows(asked)),
        (
            "Options, each by itself",
            ("setting", "saves", "costs", "price"),
            [_option(found, o) for o in found.single],
        ),
        (
            f"Settings that fit into {_bytes(found.budget or 0)}, the cheapest first",
            ("settings", "peak", "costs"),
            [(s.name, _tight(s, found.budget), _cost(s)) for s in found.fitting[:SHOWN]],
        ),
        ("Measured before", ("where", "peak"), [(name, _bytes(size)) for name, size in measured.items()]),
    ]
    parts = [
        f"# {title}",
        f"**{' '.join(filter(None, (headline(found), found.hint)))}**",
        "\n".join(f"- {note}" for note in found.notes),
        *(f"## {name}\n\n{markdown_table(header, rows)}" for name, header, rows in tables if rows),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def headline(found: Plan) -> str:
    """The peak, and whether it fits."""
    asked, stage = found.asked, found.asked.peak_stage.replace("_", " ")
    peak = f"Peak {_bytes(asked.peak)}, in {stage}"
    if found.budget is None:
        return f"{peak}."
    if found.missing:
        return (
            f"{peak}: nothing fits into {_bytes(found.budget)}. The smallest misses it by {_bytes(found.missing)}"
            f" ({found.smallest.name})."
        )
    if not found.fitting[0].options:
        return f"{peak}: fits into {_bytes(found.budget)}, {_bytes(found.budget - asked.peak)} are left."
    over = _bytes(asked.peak - found.budget)
    return f"{peak}: misses {_bytes(found.budget)} by {over}. Cheapest that fits: {found.fitting[0].name}."


def plan_json(found: Plan, measured: Mapping[str, int]) -> dict[str, Any]:
    """The same for programs: bytes, and seconds a video."""
    return {
        "budget": found.budget,
        "peak": found.asked.peak,
        "peak_stage": found.asked.peak_stage,
        "stages": {
            stage: [
                {"owner": t.owner, "bytes": t.size, "source": t.source} for t in found.asked.stages[stage]
            ]
            for stage in found.asked.stages
        },
        "options": [_setting_json(setting) for setting in found.single],
        "fits": [_setting_json(setting) for setting in found.fitting],
        "missing": found.missing,
        "smallest": _setting_json(found.smallest),
        "measured": dict(measured),
        "notes": list(found.notes),
        "hint": found.hint,
    }


def sizes_table(rows: Sequence[tuple[str, Workload]], choice: Choice, gpus: Sequence[int] = GPUS) -> str:
    """The cheapest setting that fits each GPU, or by how much the smallest misses it, as Markdown.

    Args:
        rows: what runs, each with its name.
        gpus: sizes in GiB.
    """
    table = []
    for name, work in rows:
        plans = [plan(work, choice, size * GIB) for size in gpus]
        cells = [_short(found) for found in plans]
        table.append((name, f"{plans[0].asked.peak / GIB:.1f}", *cells))
    return markdown_table(("model, profile, backend", "peak, GiB", *(f"{size} GB" for size in gpus)), table)


_LETTERS = {
    "pipeline.offload=true": "O",
    "pipeline.text_encoder_device=cpu": "C",
    "tensorrt.weight_streaming_budget_gib=0": "W",
    "text_encoder=bf16": "B",
    "text_encoder=int8": "I",
    "dit=fp16": "D",
    "vae=fp16": "H",
    "pipeline.vae_lean=true": "L",
    "pipeline.vae_tile=256": "T",
}
LEGEND = "; ".join(f"{letter} `{name}`" for name, letter in _LETTERS.items()) + "; ? tight"
"""What the letters of the table mean."""


def _short(found: Plan) -> str:
    if found.missing:
        return f"−{found.missing / GIB:.1f}"
    cheapest = found.fitting[0]
    letters = "".join(_LETTERS.get(option.name, option.name) for option in cheapest.options)
    return (letters or "✓") + ("?" if _is_tight(cheapest, found.budget) else "")


def _rows(asked: Prediction) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for stage in asked.stages:
        rows.append((f"**{stage.replace('_', ' ')}**", "", f"**{_bytes(asked.of(stage))}**", ""))
        if stage == asked.peak_stage:
            terms = sorted(asked.stages[stage], key=lambda term: -term.size)
            rows += [("", term.owner, _bytes(term.size), term.source) for term in terms]
    return rows


def _option(found: Plan, setting: Setting) -> tuple[str, ...]:
    saves = _bytes(found.asked.peak - setting.prediction.peak)
    return setting.name, saves, _cost(setting), setting.options[0].price


def _cost(setting: Setting) -> str:
    worst = max((option.loss for option in setting.options), default=0)
    video = ("the same video", "rounding", "another video")[worst]
    return f"{video}; {setting.seconds:.3g} s" if setting.seconds else video


def _tight(setting: Setting, budget: int | None) -> str:
    return _bytes(setting.prediction.peak) + (", tight" if _is_tight(setting, budget) else "")


def _is_tight(setting: Setting, budget: int | None) -> bool:
    """Whether the peak is nearer to the budget than the prediction is to be relied on."""
    return budget is not None and setting.prediction.peak * (1 + SURE) > budget


def _setting_json(setting: Setting) -> dict[str, Any]:
    return {
        "settings": [option.name for option in setting.options],
        "peak": setting.prediction.peak,
        "loss": setting.loss,
        "seconds": setting.seconds,
    }


def _bytes(size: float) -> str:
    return quantity(size, "B")

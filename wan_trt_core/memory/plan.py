"""Will it fit, and what would make it: the settings that bring a pipeline's peak into a budget, the cheapest first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from wan_trt_core.gates.formatting import quantity
from wan_trt_core.memory.caveats import caveats, hint
from wan_trt_core.memory.options import Option, offered
from wan_trt_core.memory.prediction import Choice, Prediction, Workload, predict

PREDICTED_WITHIN = 1.1
"""What a prediction of memory may be over the truth: no video is refused that would fit."""


@dataclass(frozen=True)
class Setting:
    """Options taken together.

    Attributes:
        loss: of all, see :class:`Option`.
        seconds: that they add to a video, modelled.
    """

    options: tuple[Option, ...]
    prediction: Prediction
    loss: int
    seconds: float

    @property
    def name(self) -> str:
        """The settings in words."""
        return ", ".join(option.name for option in self.options) or "as it is"


@dataclass(frozen=True)
class Plan:
    """Whether it fits, and what would make it.

    Attributes:
        budget: bytes, if one was given.
        asked: the prediction for the settings as they are.
        single: every option by itself that saves something, the most first.
        fitting: the smallest sets of options that fit, cheapest first: those that change the video least, then by
            seconds. The first is empty where it fits as it is.
        smallest: the set of options with the lowest peak of all.
        notes: what the prediction does not count, in sentences.
        hint: what to ask for instead, in a sentence; empty where there is nothing better.
    """

    budget: int | None
    asked: Prediction
    single: tuple[Setting, ...]
    fitting: tuple[Setting, ...]
    smallest: Setting
    notes: tuple[str, ...] = ()
    hint: str = ""

    @property
    def missing(self) -> int:
        """Bytes by which even the smallest misses the budget; 0 where something fits."""
        return 0 if self.budget is None or self.fitting else self.smallest.prediction.peak - self.budget


def plan(work: Workload, choice: Choice, budget: int | None = None) -> Plan:
    """Predict the peak, and find the settings that fit.

    Args:
        budget: bytes of the device.
    """
    asked = predict(work, choice)
    useful = list(offered(work, choice))
    every = [
        _setting(work, choice, options)
        for count in range(len(useful) + 1)
        for options in combinations(useful, count)
        if _apart(options)
    ]
    single = [each for each in every if len(each.options) == 1 and each.prediction.peak < asked.peak]
    fitting: list[Setting] = []
    for each in every if budget is not None else ():  # smaller sets come first
        smaller = any(set(found.options) <= set(each.options) for found in fitting)
        if not smaller and each.prediction.peak <= (budget or 0):
            fitting.append(each)
    return Plan(
        budget,
        asked,
        tuple(sorted(single, key=lambda each: each.prediction.peak)),
        tuple(sorted(fitting, key=_cost)),
        min(every, key=lambda each: (each.prediction.peak, *_cost(each))),
        tuple(caveats(work)),
        hint(work, choice, asked),
    )


def _cost(setting: Setting) -> tuple[int, float, int]:
    return setting.loss, setting.seconds, len(setting.options)


def _setting(work: Workload, choice: Choice, options: tuple[Option, ...]) -> Setting:
    changed = replace(choice, **{name: value for option in options for name, value in option.change})
    seconds = sum(option.seconds(work, changed) for option in options)
    return Setting(options, predict(work, changed), sum(option.loss for option in options), seconds)


def _apart(options: Sequence[Option]) -> bool:
    """Whether no two change the same, and none only what another does away with."""
    changed = [name for option in options for name, _ in option.change]
    off = any(change == ("text_encoder_device", "cpu") for option in options for change in option.change)
    return len(set(changed)) == len(changed) and not (off and "text_encoder" in changed)


def lacking(work: Workload, choice: Choice, free: int) -> str:
    """What a GPU lacks for a video, and the settings that fit, in words; empty where it has room.

    Args:
        free: bytes that the video may take.
    """
    budget, needed = round(free * PREDICTED_WITHIN), predict(work, choice)
    if needed.peak <= budget:
        return ""
    fits = " or ".join(setting.name for setting in plan(work, choice, budget).fitting[:3])
    return (
        f"such a video needs {quantity(needed.peak, 'B', 3)} of the GPU at its most ({needed.peak_stage}), and"
        f" {quantity(free, 'B', 3)} are free. "
        + (f"What fits: {fits}" if fits else "No settings fit: make a smaller video, or take a larger GPU")
        + " (wan-trt memory plan)"
    )

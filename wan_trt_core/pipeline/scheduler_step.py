"""A scheduler's step with its factors known before: what a GPU would wait for between two calls of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from diffusers import UniPCMultistepScheduler
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

SAMPLE, LAST, OUTPUT = 0, 1, 2
"""What a step mixes: the latents, those of the step before, and the transformer's outputs, newest first."""

LARGEST = 10
"""Of all factors. None of Wan's is over 1; some of other noise schedules cancel each other: a sum would lose digits."""


@dataclass(frozen=True)
class Factors:
    """Of one step, by what it mixes; and the state of the scheduler that they hold in.

    Attributes:
        before, after: how many steps were made (no more than the solver's order), and the order of the last.
        corrected: of the latents that the predictor starts from; None where nothing corrects them.
        predicted: of the latents after the step.
    """

    before: tuple[int, int]
    after: tuple[int, int]
    corrected: tuple[float, ...] | None
    predicted: tuple[float, ...]

    @property
    def usable(self) -> bool:
        """Whether the sums have the digits of diffusers' own steps. (At a noise level of zero some are no number.)"""
        return all(abs(factor) <= LARGEST for factor in (*(self.corrected or ()), *self.predicted))


class PlannedStep:
    """In the place of the ``step`` of diffusers' ``UniPCMultistepScheduler``, whose state it keeps as that does.

    A step of UniPC is a sum of latents and outputs whose factors follow from the noise levels alone. Diffusers' own
    computes them on the device of the latents, anew in each step: a hundred small kernels, and waits for a GPU that has
    nothing else to do meanwhile. Here they come from diffusers' own code too, which is run once for all steps over what
    it mixes, on the CPU; a step is then a sum of four to six tensors. In a state that this was not done for (a video
    that begins in the middle, latents in another precision than float32) diffusers' own step runs.

    Args:
        scheduler: whose step it makes.
    """

    def __init__(self, scheduler: UniPCMultistepScheduler) -> None:
        self._scheduler = scheduler
        self._planned_for: tuple[Any, ...] | None = None
        self._factors: tuple[Factors, ...] = ()

    def __call__(
        self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True
    ) -> SchedulerOutput | tuple[Tensor]:
        """As diffusers', to within the rounding of float32.

        Args:
            model_output: of the transformer, of the latents' shape.
            sample: latents, of any shape.
        """
        own = self._scheduler
        if own.num_inference_steps is not None and own.step_index is None:
            own._init_step_index(timestep)
        factors = self._of_this_step(sample)
        if factors is None:
            return type(own).step(own, model_output, timestep, sample, return_dict)
        output = own.convert_model_output(model_output, sample=sample)
        known = (own.last_sample, output, *reversed(own.model_outputs))
        if factors.corrected is not None:
            sample = _sum(factors.corrected, (sample, *known))
        own.model_outputs = [*own.model_outputs[1:], output]
        own.timestep_list = [*own.timestep_list[1:], timestep]
        own.last_sample = sample
        own.lower_order_nums, own.this_order = factors.after
        own._step_index += 1
        predicted = _sum(factors.predicted, (sample, *known))
        return SchedulerOutput(prev_sample=predicted) if return_dict else (predicted,)

    def _of_this_step(self, sample: Tensor) -> Factors | None:
        own = self._scheduler
        if own.step_index is None or own.solver_p is not None or sample.dtype != torch.float32:
            return None
        if (made_for := (own.sigmas.cpu().numpy().tobytes(), *own.config.items())) != self._planned_for:
            self._planned_for, self._factors = made_for, plan(own)
        if own.step_index >= len(self._factors):
            return None
        factors = self._factors[own.step_index]
        return factors if factors.usable and factors.before == _state(own) else None


class _Traced(UniPCMultistepScheduler):  # type: ignore[misc]
    """Runs over unit vectors in the place of tensors, so that what comes out are factors."""

    corrected: Tensor | None = None
    last_sample: Tensor | None
    model_outputs: list[Tensor | None]

    @cached_property
    def _units(self) -> Tensor:
        """A tensor for each that a step mixes, of shape (1, factors)."""
        return torch.eye(OUTPUT + 1 + self.config.solver_order, dtype=torch.float64)[:, None]

    def factors(self, timestep: Tensor) -> Factors:
        """Of the next step."""
        units, before = self._units, _state(self)
        self.corrected = None
        if self.last_sample is not None:
            self.last_sample = units[LAST]
        outputs = enumerate(reversed(self.model_outputs), start=OUTPUT + 1)
        self.model_outputs = [None if was is None else units[index] for index, was in outputs][::-1]
        (predicted,) = self.step(units[OUTPUT], timestep, units[SAMPLE], return_dict=False)
        return Factors(before, _state(self), _numbers(self.corrected), _numbers(predicted) or ())

    def convert_model_output(self, model_output: Tensor, *_: Any, **__: Any) -> Tensor:
        return model_output  # a step converts it itself

    def multistep_uni_c_bh_update(self, *args: Any, **keywords: Any) -> Tensor:
        self.corrected = super().multistep_uni_c_bh_update(*args, **keywords)
        return self._units[SAMPLE]  # the predictor's factors are of what was corrected


def plan(scheduler: UniPCMultistepScheduler) -> tuple[Factors, ...]:
    """The factors of each step of a scheduler whose timesteps are set, from the first on."""
    # all of it: what was a default when the scheduler was made would be one again, whatever it is now
    traced = _Traced.from_config({**scheduler.config, "_use_default_values": []})
    traced.set_timesteps(len(scheduler.timesteps))
    traced.sigmas, traced.timesteps = scheduler.sigmas, scheduler.timesteps.cpu()
    traced.set_begin_index(0)
    return tuple(map(traced.factors, traced.timesteps))


def plan_steps(scheduler: Any) -> None:
    """Give a scheduler of diffusers' class ``UniPCMultistepScheduler`` a :class:`PlannedStep`; any other, or one whose
    step somebody has replaced, is left as it is."""
    if type(scheduler) is UniPCMultistepScheduler and "step" not in vars(scheduler):
        scheduler.step = PlannedStep(scheduler)


def unplan_steps(scheduler: Any) -> None:
    """Undo :func:`plan_steps`."""
    if isinstance(vars(scheduler).get("step"), PlannedStep):
        del scheduler.step


def _state(scheduler: UniPCMultistepScheduler) -> tuple[int, int]:
    """As :class:`Factors` has it. The last step's order stays when another video begins, and means nothing there."""
    return scheduler.lower_order_nums, 0 if scheduler.last_sample is None else scheduler.this_order


def _numbers(factors: Tensor | None) -> tuple[float, ...] | None:
    return None if factors is None else tuple(factors.flatten().tolist())


def _sum(factors: Sequence[float], tensors: Sequence[Tensor | None]) -> Tensor:
    """Of the tensors, each times its factor; one whose factor is zero may be missing."""
    total: Tensor | None = None
    for factor, tensor in zip(factors, tensors, strict=True):
        if factor and tensor is not None:
            total = tensor * factor if total is None else total.add_(tensor, alpha=factor)
    assert total is not None
    return total

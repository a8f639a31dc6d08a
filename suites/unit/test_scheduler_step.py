"""``pipeline/scheduler_step.py``: a planned step is diffusers' own, in fewer operations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import wan_trt_core
from wan_trt_core.config import Settings
from wan_trt_core.models.checkpoint import EMBEDDED, Checkpoint
from wan_trt_core.pipeline.scheduler_step import PlannedStep, plan, plan_steps, unplan_steps

SHAPE = (1, 16, 2, 8, 8)
WAN = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


class Operations(TorchDispatchMode):
    """Notes what a GPU would be asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(operation.overloadpacket.__name__)
        return operation(*args, **(kwargs or {}))


def scheduler(**config: Any) -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(**{**WAN, **config})


def planned(own: UniPCMultistepScheduler) -> UniPCMultistepScheduler:
    made = UniPCMultistepScheduler.from_config(own.config)
    plan_steps(made)
    return made


def latents(
    made: Any, steps: int, *, start: int | None = None, dtype: torch.dtype = torch.float32, **timesteps: Any
) -> list[Tensor]:
    """After each step; the outputs of the transformer, in half precision, are the same for all."""
    made.set_timesteps(**(timesteps or {"num_inference_steps": steps}))
    if start is not None:
        made.set_begin_index(start)
    random = torch.Generator().manual_seed(0)
    sample, seen = torch.randn(SHAPE, generator=random).to(dtype), []
    for timestep in made.timesteps[start or 0 :]:
        output = torch.randn(SHAPE, generator=random).half()
        sample = made.step(output, timestep, sample, return_dict=False)[0]
        seen.append(sample)
    return seen


def assert_same(found: list[Tensor], expected: list[Tensor], tolerance: float = 2e-6) -> None:
    assert len(found) == len(expected) > 0
    for ours, own in zip(found, expected, strict=True):
        assert ours.dtype == own.dtype
        assert float((ours - own).abs().max()) <= tolerance * float(own.abs().max())


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"solver_order": 1},
        {"solver_order": 3},
        {
            "solver_type": "bh1",
            "final_sigmas_type": "sigma_min",
        },  # both end in diffusers' own nan at a level of zero
        {"lower_order_final": False, "final_sigmas_type": "sigma_min"},
        {"prediction_type": "v_prediction", "use_flow_sigmas": False},
        {
            "prediction_type": "v_prediction",
            "use_flow_sigmas": False,
            "predict_x0": False,
            "final_sigmas_type": "sigma_min",
        },
        {"disable_corrector": [0, 3]},
        {"thresholding": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("steps", [1, 2, 3, 9])
def test_a_planned_step_is_diffusers_own(config: dict[str, Any], steps: int) -> None:
    own = scheduler(**config)
    ours = planned(own)
    found, expected = latents(ours, steps), latents(own, steps)
    assert_same(found, expected)
    for name in ("step_index", "this_order", "lower_order_nums", "timestep_list"):
        assert getattr(ours, name) == getattr(own, name)
    assert_same(ours.model_outputs[-1:], own.model_outputs[-1:])
    assert_same([ours.last_sample], [own.last_sample])


def test_a_step_asks_a_gpu_for_a_fraction_of_the_operations_and_waits_for_none() -> None:
    """After the first video: what is planned before it is the CPU's work."""

    def asked(made: Any) -> list[str]:
        latents(made, 10)
        with Operations() as noted:
            latents(made, 10)
        return noted.names

    ours, own = asked(planned(scheduler())), asked(scheduler())
    assert 5 * len(ours) < len(own)
    waits = "_linalg_check_errors"  # which a GPU is read for
    assert waits in own and waits not in ours
    read = "_local_scalar_dense"
    assert ours.count(read) == own.count(read) == 1, "where the first step finds its index"


def test_a_second_video_is_as_the_first_to_the_bit() -> None:
    ours = planned(scheduler())
    first = latents(ours, 5)
    assert_same(latents(ours, 5), first, 0.0)


def test_another_video_is_planned_anew() -> None:
    own = scheduler()
    ours = planned(own)
    for asked in ({"num_inference_steps": 4}, {"num_inference_steps": 7}, {"num_inference_steps": 4}):
        assert_same(latents(ours, 0, **asked), latents(own, 0, **asked))
    for made in (ours, own):
        made.register_to_config(solver_type="bh1", final_sigmas_type="sigma_min")
    assert_same(latents(ours, 5), latents(own, 5))


def test_factors_that_cancel_each_other_are_not_summed() -> None:
    """Those of a noise level of one without a prediction of the video itself."""
    own = scheduler(predict_x0=False, final_sigmas_type="sigma_min")
    own.set_timesteps(3)
    assert [factors.usable for factors in plan(own)] == [False, False, True]


@pytest.mark.parametrize("given", [{"start": 3}, {"dtype": torch.float16}], ids=str)
def test_in_another_state_the_own_step_runs(given: dict[str, Any]) -> None:
    """Which a planned step goes on from where its own state is reached."""
    own = scheduler()
    expected = latents(own, 9, **given)
    assert_same(latents(planned(own), 9, **given), expected)


def test_own_latents_in_half_precision_are_to_the_bit() -> None:
    own = scheduler()
    assert_same(latents(planned(own), 5, dtype=torch.float16), latents(own, 5, dtype=torch.float16), 0.0)


def test_steps_before_any_timesteps_are_refused_as_by_diffusers() -> None:
    with pytest.raises(ValueError, match="set_timesteps"):
        planned(scheduler()).step(torch.zeros(SHAPE), 1, torch.zeros(SHAPE))


def test_the_result_has_diffusers_form() -> None:
    ours = planned(scheduler())
    ours.set_timesteps(2)
    assert ours.step(torch.ones(SHAPE), ours.timesteps[0], torch.ones(SHAPE)).prev_sample.shape == SHAPE


def test_what_is_not_unipc_or_somebody_s_own_is_left_alone() -> None:
    euler, theirs = FlowMatchEulerDiscreteScheduler(), scheduler()
    theirs.step = step = object()
    for made in (euler, theirs):
        plan_steps(made)
        unplan_steps(made)
    assert "step" not in vars(euler) and theirs.step is step


@pytest.mark.usefixtures("on_modules")
def test_an_accelerated_pipeline_s_steps_are_planned_until_it_is_restored(tmp_path: Any) -> None:
    pipe = Checkpoint.open(EMBEDDED).pipeline({})
    own = pipe.scheduler
    wan_trt_core.accelerate(pipe, profile="jit", settings=Settings(cache=tmp_path))
    assert pipe.scheduler is own and isinstance(own.step, PlannedStep)
    wan_trt_core.restore(pipe)
    assert pipe.scheduler is own and "step" not in vars(own)

"""Parity: the candidate's outputs beside stock diffusers', and where they part if they do."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import Any

from wan_trt_core.cases import ERROR_OVER_STOCK, MEAN, Case
from wan_trt_core.comparison.blocks import Divergence
from wan_trt_core.comparison.conditions import equal_conditions, snapshot
from wan_trt_core.comparison.context import Context
from wan_trt_core.comparison.frames import keep_frames
from wan_trt_core.comparison.operations import Operation
from wan_trt_core.comparison.targets import Arm, Outputs, Target, target_of
from wan_trt_core.gates.formatting import quantity
from wan_trt_core.measure.quality import VIDEO_METRICS, tensor_metrics, video_metrics
from wan_trt_core.records import Measurement, Metric

AROUND = 2
"""Blocks before and after the first diverging one that a failure message lists."""


@dataclass(frozen=True)
class Explanation:
    """Where one component of a case parts from the reference.

    Attributes:
        operation: the first that differs in the first diverging block, where one was found.
        operation_text: what is known of it, in words; empty where no block diverges.
    """

    component: str
    divergence: Divergence
    operation: Operation | None = None
    operation_text: str = ""

    def describe(self) -> tuple[str, ...]:
        """A line for the block and one for the operation."""
        lines = (self.divergence.describe(), self.operation_text)
        return tuple(f"{self.component}: {line}" for line in lines if line)


def measure(case: Case, context: Context) -> Measurement:
    """Compare every output at every point of the case's profile; of a case with prompts, every video."""
    if case.parity is None:
        raise ValueError(f"case {case.id} has no parity gate")
    with equal_conditions(context.settings):
        target = target_of(case, context)
        target.build()
        required = frozenset(case.parity.limits)
        asked = ERROR_OVER_STOCK in {*required, *case.parity.bands}
        stock = stock_of(case, context) if asked else None
        by_source: dict[str, dict[str, Metric]] = {}
        frames: dict[str, Any] = {}
        for source, inputs in target.parity_inputs():
            expected, found = target.reference.call(inputs), target.candidate.call(inputs)
            by_source[source] = compare(expected, found, required, target.fps)
            if stock is not None:
                by_source[source] |= _over_stock(by_source[source], expected, stock, inputs)
            if source == _worst_source(by_source, "video.psnr_db"):
                frames |= keep_frames(context.report, f"{case.id}-parity", expected, found, target.fps)
        return Measurement(
            metrics=worst(by_source, listed=not case.prompts) | (_of_each(by_source) if case.prompts else {}),
            facts={"conditions": snapshot(), **target.facts(), **frames},
            problems=target.problems(),
        )


def stock_of(case: Case, context: Context) -> Arm:
    """Stock diffusers in the candidate's own precision."""
    return target_of(case.model_copy(update={"reference_precision": None}), context).reference


def _over_stock(found: dict[str, Metric], expected: Outputs, stock: Arm, inputs: Any) -> dict[str, Metric]:
    theirs, ours = compare(expected, stock.call(inputs))["relative_l2"].value, found["relative_l2"].value
    if ours is None or not theirs:
        return {
            ERROR_OVER_STOCK: Metric(
                value=None, unit="x", better="lower", detail="stock diffusers has no error"
            )
        }
    detail = f"stock diffusers in that precision has a relative L2 of {theirs:.1e}"
    return {ERROR_OVER_STOCK: Metric(value=ours / theirs, unit="x", better="lower", detail=detail)}


def _worst_source(by_source: dict[str, dict[str, Metric]], name: str) -> str | None:
    """Where a metric is worst; of equals the first."""
    found = {source: metrics[name] for source, metrics in by_source.items() if name in metrics}
    return min(found, key=lambda source: _badness(found[source]), default=None)


def _of_each(by_source: dict[str, dict[str, Metric]]) -> dict[str, Metric]:
    """Each metric of every video by itself, and its mean over them."""
    metrics = {
        f"{source}.{name}": metric for source, found in by_source.items() for name, metric in found.items()
    }
    for name in dict.fromkeys(name for found in by_source.values() for name in found):
        each = [found[name] for found in by_source.values()]
        values = [metric.value for metric in each if metric.value is not None]
        whole = len(values) == len(each)
        update = {"value": fmean(values) if whole else None, "samples": tuple(values)}
        detail = "" if whole else "not computed for every prompt"
        metrics[f"{MEAN}{name}"] = each[0].model_copy(update={**update, "detail": detail})
    return metrics


def explanations_of(case: Case, context: Context) -> tuple[Explanation, ...]:
    """Each component of the case with every block's output beside the reference's, and the operation that broke.

    Runs engines that give out every block's output, which are built for it; none for a backend that has no engines.
    """
    with equal_conditions(context.settings):
        target = target_of(case, context)
        return tuple(_explanation(target, name, found) for name, found in target.divergences().items())


def explain(case: Case, context: Context) -> tuple[str, ...]:
    """For a case that failed: the first diverging block and operation of each component, then the blocks around."""
    found = explanations_of(case, context)
    tables = (line for each in found if each.divergence.first for line in each.divergence.table(AROUND))
    return (*(line for each in found for line in each.describe()), *tables)


def _explanation(target: Target, component: str, divergence: Divergence) -> Explanation:
    if divergence.first is None:
        return Explanation(component, divergence)
    graph = target.looked_into()
    try:
        operation = target.operation(component, divergence.first)
    except Exception as error:  # of whatever kind: the block is known, and must be told
        why = f"first operation not found out: {type(error).__name__}: {error}"
        return Explanation(component, divergence, None, why)
    if operation is not None:
        return Explanation(
            component, divergence, operation, f"first operation: {operation.describe()}, in {graph}"
        )
    why = f"no operation of {divergence.first} differs by more than rounding at the profile's min in {graph}"
    return Explanation(component, divergence, None, why)


def compare(
    reference: Outputs, candidate: Outputs, required: frozenset[str] = frozenset(), fps: float = 16.0
) -> dict[str, Metric]:
    """Metrics of all outputs: the worst over the tensors; video and trajectory metrics under their own prefix.

    Tensor outputs give ``psnr_db``, ``relative_l2`` … (the worst of all outputs); a ``video`` output gives
    ``video.psnr_db``, ``video.ssim`` …; ``latents`` (one tensor a denoising step) give ``latents.psnr_db`` … with
    one sample a step.
    """
    metrics: dict[str, Metric] = {}
    if reference.tensors:
        pairs = {
            name: tensor_metrics(tensor, candidate.tensors[name])
            for name, tensor in reference.tensors.items()
        }
        metrics |= worst(pairs)
    if reference.video is not None:
        wanted = {name.removeprefix("video.") for name in required if name.startswith("video.")}
        found = video_metrics(
            reference.video, candidate.video, wanted & set(VIDEO_METRICS), frames_per_second=fps
        )
        metrics |= {f"video.{name}": metric for name, metric in found.items()}
    if reference.latents:
        steps = {
            f"step {index}": tensor_metrics(expected, found)
            for index, (expected, found) in enumerate(zip(reference.latents, candidate.latents, strict=True))
        }
        metrics |= {f"latents.{name}": metric for name, metric in worst(steps).items()}
    return metrics


def worst(by_source: dict[str, dict[str, Metric]], *, listed: bool = False) -> dict[str, Metric]:
    """Each metric at its worst over several sources, which its detail names; the samples are all of them.

    Args:
        listed: the detail says what it is at every source, for sources as few as the points of a profile.
    """
    if len(by_source) == 1:
        return dict(*by_source.values())
    merged: dict[str, Metric] = {}
    for name in dict.fromkeys(name for metrics in by_source.values() for name in metrics):
        found = {source: metrics[name] for source, metrics in by_source.items() if name in metrics}
        source, metric = min(found.items(), key=lambda item: _badness(item[1]))
        samples = tuple(other.value for other in found.values() if other.value is not None)
        each = ", ".join(f"{at} {quantity(other.value, other.unit)}" for at, other in found.items())
        told = (f"worst at {source}", each if listed else "", metric.detail)
        merged[name] = metric.model_copy(update={"detail": "; ".join(filter(None, told)), "samples": samples})
    return merged


def _badness(metric: Metric) -> tuple[int, float]:
    """Sorts worst first: not computed, then NaN, then by value."""
    if metric.value is None:
        return (0, 0.0)
    if metric.value != metric.value:
        return (1, 0.0)
    return (2, metric.value if metric.better == "higher" else -metric.value)

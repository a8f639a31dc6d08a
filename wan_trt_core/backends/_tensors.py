"""Named tensors against what an engine declares: the checks and the shape arithmetic that backends share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from wan_trt_core.backends.base import EngineError, TensorInfo
from wan_trt_core.models.component import evaluate_axis

UNKNOWN = "?"
"""A dynamic axis that has no name."""


def dtype_name(dtype: torch.dtype) -> str:
    """PyTorch's name of a dtype without its prefix: ``float16``."""
    return str(dtype).removeprefix("torch.")


def check_inputs(
    engine: str, declared: Mapping[str, TensorInfo], given: Mapping[str, Tensor]
) -> dict[str, int]:
    """Hold the given tensors against the declared inputs; returns the sizes of the dynamic axes.

    Raises:
        EngineError: for a missing, superfluous, wrongly typed or wrongly shaped tensor, by name.
    """
    _check_names(engine, "input", declared, given)
    for name, info in declared.items():
        check_dtype_and_rank(engine, "input", name, info, given[name])
    sizes: dict[str, int] = {}
    origin: dict[str, str] = {}
    # Plain names first: an expression such as 4*frames is then checked rather than solved.
    axes = [(name, at, axis) for name, info in declared.items() for at, axis in enumerate(info.shape)]
    for name, at, axis in sorted(axes, key=lambda entry: "*" in str(entry[2])):
        found = given[name].shape[at]
        expected = _expected(axis, found, sizes)
        if expected is not None and expected != found:
            declared_as = (
                "" if isinstance(axis, int) else f" ({axis}, by input {origin.get(axis, 'sizes')!r})"
            )
            raise EngineError(
                f"{engine}: input {name!r} has shape {tuple(given[name].shape)}: axis {at} must be"
                f" {expected}{declared_as}, declared {_shape(declared[name])}"
            )
        if isinstance(axis, str):
            origin.setdefault(axis, name)
    return sizes


def check_dtype_and_rank(engine: str, role: str, name: str, info: TensorInfo, tensor: Tensor) -> None:
    """Dtype and number of axes of one tensor.

    Raises:
        EngineError: when either differs from what is declared.
    """
    if dtype_name(tensor.dtype) != info.dtype:
        raise EngineError(f"{engine}: {role} {name!r} is {dtype_name(tensor.dtype)}, expected {info.dtype}")
    if tensor.dim() != len(info.shape):
        raise EngineError(
            f"{engine}: {role} {name!r} has shape {tuple(tensor.shape)}, "
            f"expected {len(info.shape)} axes: {_shape(info)}"
        )


def check_outputs(
    engine: str,
    declared: Mapping[str, TensorInfo],
    given: Mapping[str, Tensor],
    sizes: Mapping[str, int],
    inputs: Mapping[str, Tensor],
) -> None:
    """Hold tensors that are to be written into against the declared outputs.

    Raises:
        EngineError: for an unknown name, a wrong dtype or shape, gaps in memory, or memory of an input.
    """
    unknown = set(given) - set(declared)
    if unknown:
        raise EngineError(f"{engine}: no output {sorted(unknown)[0]!r}; it returns {', '.join(declared)}")
    read = {tensor.untyped_storage().data_ptr(): name for name, tensor in inputs.items() if tensor.numel()}
    for name, tensor in given.items():
        check_dtype_and_rank(engine, "output", name, declared[name], tensor)
        shape = output_shape(declared[name], sizes)
        if shape is not None and shape != tuple(tensor.shape):
            raise EngineError(f"{engine}: output {name!r} has shape {tuple(tensor.shape)}, expected {shape}")
        if not tensor.is_contiguous():
            raise EngineError(
                f"{engine}: output {name!r} is not contiguous, so it cannot be written to in place"
            )
        owner = read.get(tensor.untyped_storage().data_ptr())
        if owner is not None and tensor.numel():
            raise EngineError(f"{engine}: output {name!r} shares its memory with input {owner!r}")


def check_devices(
    engine: str, device: torch.device, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]
) -> None:
    """Every tensor must be where the engine is: it reads and writes them in place.

    Raises:
        EngineError: for one that is elsewhere, by name.
    """
    for role, tensors in (("input", inputs), ("output", outputs)):
        for name, tensor in tensors.items():
            if tensor.device != device:
                raise EngineError(f"{engine}: {role} {name!r} is on {tensor.device}, the engine on {device}")


def within(shape: Sequence[int], least: Sequence[int], most: Sequence[int]) -> bool:
    """Whether a shape lies between two others of the same rank."""
    return len(shape) == len(least) and all(
        low <= size <= high for low, size, high in zip(least, shape, most, strict=True)
    )


def output_shape(info: TensorInfo, sizes: Mapping[str, int]) -> tuple[int, ...] | None:
    """The concrete shape of an output, or None where it does not follow from the named axes alone."""
    try:
        return tuple(axis if isinstance(axis, int) else evaluate_axis(axis, sizes) for axis in info.shape)
    except KeyError:
        return None


def _check_names(
    engine: str, role: str, declared: Mapping[str, TensorInfo], given: Mapping[str, Tensor]
) -> None:
    missing = [name for name in declared if name not in given]
    if missing:
        raise EngineError(f"{engine}: {role} {missing[0]!r} is missing; it takes {', '.join(declared)}")
    superfluous = [name for name in given if name not in declared]
    if superfluous:
        raise EngineError(f"{engine}: there is no {role} {superfluous[0]!r}; it takes {', '.join(declared)}")


def _expected(axis: int | str, found: int, sizes: dict[str, int]) -> int | None:
    """What an axis must be, as far as is known; a name that is met for the first time takes ``found``."""
    if isinstance(axis, int):
        return axis
    factors = axis.split("*")
    if not all(factor.isidentifier() or factor.isdigit() for factor in factors):
        return None  # an expression beyond products: the runtime itself checks it
    unknown = [factor for factor in factors if not factor.isdigit() and factor not in sizes]
    if unknown == []:
        return evaluate_axis(axis, sizes)
    if len(unknown) > 1:
        return None
    known = evaluate_axis("*".join(f for f in factors if f not in unknown) or "1", sizes)
    sizes[unknown[0]] = max(found // known, 1) if known else found
    return sizes[unknown[0]] * known


def _shape(info: TensorInfo) -> str:
    return "(" + ", ".join(str(axis) for axis in info.shape) + ")"

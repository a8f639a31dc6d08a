"""What an engine folder holds: the plan, ``engine.json`` that describes it, and ``layers.json`` of the inspector."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wan_trt_core.backends.base import EngineError, TensorInfo

if TYPE_CHECKING:
    from wan_trt_core.config import Settings

DESCRIPTION = "engine.json"
LAYERS = "layers.json"

FEW = 3
"""Layers that a problem names; the manifest and ``layers.json`` have all of them."""

Shapes = Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
"""Least, tuned-for and greatest shape of every input."""


def tf32(settings: Settings, precision: str) -> bool:
    """Whether products may use TF32: only float32 ones could, so every half-precision engine is built alike. TensorRT
    has one switch for convolutions and matrix products."""
    return bool(settings.perf.allow_tf32) and precision == "fp32"


@dataclass(frozen=True)
class Description:
    """What is known of an engine without TensorRT.

    Attributes:
        plan: name of the plan's file, ``{component}_{precision}.trt``.
        inputs: by name, with the names of the dynamic axes, which a plan does not keep.
        profiles: the optimization profiles, in the plan's order.
        attentions: of the graph that TensorRT has fused kernels for, each of which should be one.
        unfused: layers that show an attention was not fused; empty in a good engine.
        unplanned: products computed in another dtype than the graph's; empty in a good engine.
        precisions: layers by the dtype that they compute in.
        unfusable: the graph's other attentions, each with why it has no fused kernel; no problem, but not a fused one.
        products: of the graph, whose precision is checked.
        untold: those of them that no layer of the inspector's report tells of, so that nothing is known of theirs.
        scratch: bytes of scratch memory at the shapes that the first profile is tuned for; 0 where TensorRT told none.
    """

    component: str
    precision: str
    plan: str
    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]
    profiles: tuple[Shapes, ...]
    attentions: int
    unfused: tuple[str, ...] = ()
    unplanned: tuple[str, ...] = ()
    precisions: Mapping[str, int] | None = None
    unfusable: tuple[str, ...] = ()
    products: int = 0
    untold: tuple[str, ...] = ()
    scratch: int = 0

    @property
    def name(self) -> str:
        """``dit_fp16``."""
        return f"{self.component}_{self.precision}"

    @property
    def problems(self) -> tuple[str, ...]:
        """In what the engine is not what was meant, a sentence each; the first few layers stand for all."""
        told = {
            f"{len(self.unfused)} of {self.attentions} attentions were not fused": self.unfused,
            f"{len(self.unplanned)} products are not computed in the graph's precision": self.unplanned,
        }
        return tuple(f"engine {self.name}: {what}: {_few(layers)}" for what, layers in told.items() if layers)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to know of the engine and is no problem, a sentence each.

        Products that no layer tells of are none yet: whether the reports of real engines tell of every one (a constant
        one, for example, may be folded away) has to be seen on a GPU before a case can be invalid for it.
        """
        told = f"{self.products - len(self.untold)} of {self.products}"
        missing = f", not of {_few(self.untold)}" if self.untold else ""
        said = {
            f"no fused kernel takes {len(self.unfusable)} attentions: {_few(self.unfusable)}": self.unfusable,
            f"the inspector tells the precision of {told} products{missing}": self.products,
        }
        return tuple(f"engine {self.name}: {note}" for note, applies in said.items() if applies)


def _few(items: tuple[str, ...]) -> str:
    more = f" and {len(items) - FEW} more" if len(items) > FEW else ""
    return ", ".join(items[:FEW]) + more


def write_description(description: Description, folder: Path) -> None:
    """Write ``engine.json``."""
    (folder / DESCRIPTION).write_text(json.dumps(asdict(description), indent=2) + "\n")


def read_description(folder: Path) -> Description:
    """Read ``engine.json``.

    Raises:
        EngineError: when the folder holds no engine of this backend.
    """
    path = folder / DESCRIPTION
    try:
        return _description(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise EngineError(f"{path}: no engine of the tensorrt backend: {error}") from error


def _description(data: dict[str, Any]) -> Description:
    tensors = {
        role: {name: TensorInfo(info["dtype"], tuple(info["shape"])) for name, info in data[role].items()}
        for role in ("inputs", "outputs")
    }
    profiles = tuple(
        {name: _triple(shapes) for name, shapes in profile.items()} for profile in data["profiles"]
    )
    return Description(**{**data, **tensors, "profiles": profiles, **_tuples(data)})


def _tuples(data: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    return {name: tuple(data.get(name, ())) for name in ("unfused", "unfusable", "unplanned", "untold")}


def _triple(shapes: list[list[int]]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    least, tuned, greatest = (tuple(shape) for shape in shapes)
    return least, tuned, greatest

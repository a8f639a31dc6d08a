"""The second transformer of Wan 2.2 A14B, which denoises from the boundary on: the graph of ``dit``, other weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wan_trt_core.models.components.dit import Dit

if TYPE_CHECKING:
    from torch import Tensor

    from wan_trt_core.models.checkpoint import Checkpoint


class Dit2(Dit):
    """As :class:`~wan_trt_core.models.components.dit.Dit`, of ``transformer_2``, the expert for little noise."""

    name = "dit_2"
    part = "transformer_2"

    def _timesteps(self, checkpoint: Checkpoint) -> Tensor:
        timesteps = super()._timesteps(checkpoint)
        of_training = checkpoint.scheduler().config.num_train_timesteps
        below: Tensor = timesteps[timesteps < checkpoint.pipeline_config()["boundary_ratio"] * of_training]
        return below


COMPONENT = Dit2()

"""What one session shares between its cases: settings, opened checkpoints, loaded engines."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wan_trt_core.backends.registry import device_of
from wan_trt_core.config import with_values

if TYPE_CHECKING:
    from wan_trt_core.cases import Case
    from wan_trt_core.config import Settings
    from wan_trt_core.models.catalogue import ResolvedModel
    from wan_trt_core.pipeline.engines import EngineStore

_Weights = tuple[str, int | None, bool]
"""What tells the weights of a case's model from those of others."""


@dataclass
class Context:
    """Made once a session and handed to every measurement. Loading is lazy, and happens once for the cases in a row
    that share what is loaded.

    Attributes:
        report: folder of the report that is being written, which gets the videos that are compared.
    """

    settings: Settings
    report: Path | None = None
    _models: dict[_Weights, ResolvedModel] = field(default_factory=dict, init=False)
    _engines: EngineStore | None = field(default=None, init=False)
    _twins: dict[str, Context] = field(default_factory=dict, init=False)
    _serves: tuple[Any, ...] | None = field(default=None, init=False)

    def model(self, case: Case) -> ResolvedModel:
        """The case's model, opened.

        Raises:
            CatalogueError, CheckpointError: when there is no such model or its folder cannot be used.
        """
        from wan_trt_core.models.catalogue import resolve

        key = _weights_of(case)
        if key not in self._models:
            self._models[key] = resolve(
                case.model,
                self.settings.checkpoint_of(case.model),
                layers=case.layers,
                text_encoder=case.text_encoder,
            )
        return self._models[key]

    def beside(self, settings: Settings) -> Context:
        """Another context over the same opened models, with engines of its own; its maker closes it."""
        other = Context(settings, self.report)
        other._models = self._models
        return other

    @property
    def engines(self) -> EngineStore:
        """The engines loaded so far, and those on disk."""
        from wan_trt_core.pipeline.engines import EngineStore

        if self._engines is None:
            self._engines = EngineStore(self.settings)
        return self._engines

    def under(self, case: Case) -> Context:
        """This context, or its twin where the case has settings of its own or allows TF32: other engines.

        On a GPU what only earlier cases needed is given back before: their engines, and the modules of other models.
        """
        own = case.own_settings
        of_engines = (*_weights_of(case), case.profile, case.precision_label, case.backend)
        serves = (*of_engines, json.dumps(own, sort_keys=True))
        if serves != self._serves and device_of(self.settings, case.backend) == "cuda":
            from wan_trt_core.pipeline.offload import give_back_cached

            self.close()
            for other in [key for key in self._models if key != _weights_of(case)]:
                del self._models[other]
            give_back_cached()
        self._serves = serves
        settings = with_values(self.settings, own)
        if settings == self.settings:
            return self
        return self._twins.setdefault(serves[-1], self.beside(settings))

    def close(self) -> None:
        """Release the engines."""
        for twin in self._twins.values():
            twin.close()
        if self._engines is not None:
            self._engines.close()
            self._engines = None


def _weights_of(case: Case) -> _Weights:
    return case.model, case.layers, case.text_encoder

"""What one pytest session knows: settings, cases, context and baselines, each read when first needed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from wan_trt_core.pytest_plugin import options

if TYPE_CHECKING:
    from wan_trt_core.baselines import BaselineFile
    from wan_trt_core.cases import Allowed, Case, CaseFile, Suite
    from wan_trt_core.comparison.context import Context
    from wan_trt_core.config import Loaded, Settings
    from wan_trt_core.gates.bands import BaselineEntry
    from wan_trt_core.records import CaseRecord

SESSION = pytest.StashKey["WanSession"]()


@dataclass(frozen=True)
class Stored:
    """What the baselines hold for one case.

    Attributes:
        entry: the case's own baseline, whatever made it: its provenance says what did.
        for_hardware: this hardware has a baseline file for the model and suite.
        error: why the file could not be used.
    """

    entry: BaselineEntry | None
    for_hardware: bool
    error: str | None = None


class WanSession:
    """State of one pytest session (under xdist: of one of its processes).

    Attributes:
        refusal: why this session must not judge anything; set while collecting.
        selected: suites of the collected tests.
        backends: of the cases that are judged, as far as they are known.
        throttle_before: the machine's throttling counters before the first test.
        keep: told of a record before its test has ended; the process that reports writes it.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.refusal: str | None = None
        self.selected: frozenset[str] = frozenset()
        self.backends: set[str] = set()
        self.throttle_before: Mapping[str, int] | None = None
        self.keep: Callable[[CaseRecord], object] = lambda record: None
        self._baselines: dict[tuple[str, str], BaselineFile | None] = {}
        self._hardware_keys: dict[str, str] = {}
        self._closing = ExitStack()

    @cached_property
    def options(self) -> dict[str, Any]:
        """What was given on the command line."""
        return options.given(self.config)

    @cached_property
    def command(self) -> tuple[str, ...]:
        """The command line of the run; in a worker of pytest-xdist that of the process which started it."""
        worker = getattr(self.config, "workerinput", None)
        program, *given = worker["mainargv"] if worker else (sys.argv[0], *self.config.invocation_params.args)
        return Path(program).name, *map(str, given)

    @property
    def gating(self) -> bool:
        """Whether verdicts fail tests."""
        return "no_gate" not in self.options

    @property
    def require_bands(self) -> bool:
        """Whether a machine without baselines fails."""
        return "require_bands" in self.options

    @cached_property
    def loaded(self) -> Loaded:
        """The settings and where each came from.

        Raises:
            ConfigError: when a setting is wrong.
        """
        from wan_trt_core.config import checkpoints, load_settings, of_suites
        from wan_trt_core.logs import logging_to

        file = self.options.get("config")
        overrides = {name: self.options.get(name) for name in options.SETTINGS}
        overrides["memory.budget"] = self.options.get("memory_budget")
        if given := overrides["checkpoint"]:
            overrides["checkpoint"] = checkpoints(given, "--wan-checkpoint")
        loaded = load_settings(Path(file) if file else None, overrides, option_prefix="--wan-")
        loaded = replace(loaded, settings=of_suites(loaded.settings))
        if loaded.settings.log.file is not None:  # pytest itself shows what is logged in a test that fails
            self._closing.enter_context(logging_to(loaded.settings.log, terminal=False))
        return loaded

    @property
    def settings(self) -> Settings:
        """The settings."""
        return self.loaded.settings

    @property
    def case_path(self) -> Path:
        """The case file named on the command line, or the default one."""
        named = self.options.get("cases")
        if named is None:
            return self.config.rootpath / options.DEFAULT_CASES
        return Path(self.config.invocation_params.dir, Path(named).expanduser())

    @property
    def active(self) -> bool:
        """Whether this run seems to be about us: an option is given, or there is a case file."""
        return bool(self.options) or self.case_path.is_file()

    @property
    def overrides(self) -> dict[str, str]:
        """Fields that the command line or the environment replaces in every case."""
        return self.loaded.overrides

    @property
    def thresholds(self) -> dict[str, float]:
        """Those that the command line gives in place of the case file's, by metric.

        Raises:
            CaseFileError: when one is no ``METRIC=VALUE``.
        """
        from wan_trt_core.cases import CaseFileError

        found: dict[str, float] = {}
        for text in self.options.get("threshold", ()):
            metric, _, value = text.partition("=")
            try:
                found[metric] = float(value)
            except ValueError:
                raise CaseFileError(f"--wan-threshold: {text!r} is no METRIC=VALUE, as speedup=1.6") from None
        return found

    @cached_property
    def _whole_case_file(self) -> CaseFile:
        """All cases, overrides applied.

        Raises:
            CaseFileError: when the file or an override is wrong.
            ConfigError: when a setting is wrong.
        """
        from wan_trt_core.cases import load_cases

        allowed = allowed_names()
        case_file = load_cases(self.case_path, allowed).overridden(**self.overrides)
        if self.overrides:
            kept = case_file.for_backend(self.overrides.get("backend"))
            kept.require_names(allowed, ", ".join(self.loaded.sources[name] for name in self.overrides))
        return case_file.held_to(self.thresholds, "--wan-threshold")

    @property
    def case_file(self) -> CaseFile:
        """The cases, overrides applied, without those that are for other backends only.

        Raises:
            CaseFileError: when the file or an override is wrong.
            ConfigError: when a setting is wrong.
        """
        return self._whole_case_file.for_backend(self.overrides.get("backend"))

    @property
    def models(self) -> tuple[str, ...]:
        """Those of all cases, also of the ones that are for other backends only."""
        return tuple(dict.fromkeys(case.model for case in self._whole_case_file.cases))

    @property
    def left_out(self) -> str:
        """How many cases wait for a backend that this run does not name, and for which; empty if none."""
        kept = self.case_file.cases
        others = [case for case in self._whole_case_file.cases if case not in kept]
        backends = sorted({backend for case in others for backend in case.only_backends})
        return f"{len(others)} case(s) only with --wan-backend {' or '.join(backends)}" if others else ""

    def cases(self, suite: Suite) -> tuple[Case, ...]:
        """The cases of one suite."""
        return self.case_file.of_suite(suite)

    @cached_property
    def context(self) -> Context:
        """What measurements share: opened checkpoints and loaded engines."""
        from wan_trt_core.comparison.context import Context

        return Context(self.settings, self.settings.report)

    @property
    def backend(self) -> str:
        """One of :attr:`backends`, which all run on one device; before they are known one of the case file's where that
        can be told without asking PyTorch, else that of the settings."""
        from wan_trt_core.backends.registry import of_one_device, runs_on
        from wan_trt_core.cases import CaseFileError

        backends = self.backends
        if not backends:
            with suppress(CaseFileError):  # collection says what is wrong, if a test wants cases at all
                backends = {case.backend for case in self.case_file.cases}
            if not all(map(runs_on, backends)):
                return self.settings.backend
        return of_one_device(self.settings, backends) or self.settings.backend

    @property
    def hardware_key(self) -> str:
        """This machine's name, under which the baselines of :attr:`backend`'s device are stored."""
        backend = self.backend
        if backend not in self._hardware_keys:
            self._hardware_keys[backend] = str(self.config.hook.pytest_wan_hardware_key(session=self))
        return self._hardware_keys[backend]

    def stored(self, case: Case, suite: Suite) -> Stored:
        """What the baselines hold for a case on this hardware."""
        from wan_trt_core.baselines import BaselineError, read_baselines

        key = (case.model, suite)
        try:
            if key not in self._baselines:
                self._baselines[key] = read_baselines(
                    self.settings.baselines, self.hardware_key, *key, self.command
                )
        except BaselineError as error:
            return Stored(None, for_hardware=True, error=str(error))
        file = self._baselines[key]
        return Stored(file.cases.get(case.id) if file else None, for_hardware=file is not None)

    def orphans(self, judged: Collection[tuple[str, str]]) -> list[str]:
        """Stored baselines that no case asks for, ``SUITE CASE (MODEL)`` each, of the suites that ran completely.

        Args:
            judged: suite and id of the cases that were judged. Where one of a suite's is absent (``-k``, ``--lf``,
                ``-x``), the run says nothing about that suite's baselines.
        """
        from wan_trt_core.baselines import BaselineError, find_orphans, read_baselines

        found = []
        for suite in options.MARKERS:
            asked = self._whole_case_file.of_suite(suite)
            if not asked or any((suite, case.id) not in judged for case in self.cases(suite)):
                continue
            for model in sorted({case.model for case in asked}):
                with suppress(BaselineError):  # its cases are invalid, which says more
                    file = read_baselines(self.settings.baselines, self.hardware_key, model, suite)
                    known = [case.id for case in asked if case.model == model]
                    found += [
                        f"{suite} {case} ({model})" for case in (find_orphans(file, known) if file else ())
                    ]
        return found

    def hold(self, resource: AbstractContextManager[Any]) -> None:
        """Keep something until the session ends."""
        self._closing.enter_context(resource)

    def close(self) -> None:
        """Release what the context holds, if there is one, and close the log file."""
        if "context" in self.__dict__:
            self.context.close()
        self._closing.close()


def allowed_names() -> Allowed:
    """The names that a case file may use. Imports no backend, no component and not torch."""
    from wan_trt_core.backends.registry import backend_names
    from wan_trt_core.cases import BESIDE, ERROR_OVER_STOCK, Allowed
    from wan_trt_core.measure.quality import TENSOR_METRICS, VIDEO_METRICS
    from wan_trt_core.measure.timing import TIMING_METRICS
    from wan_trt_core.models.catalogue import installed_names, model_names, profile_names
    from wan_trt_core.models.components import component_names

    parity = (
        *TENSOR_METRICS,
        *(f"video.{name}" for name in (*VIDEO_METRICS, "non_finite")),
        *(f"latents.{name}" for name in TENSOR_METRICS),
    )
    return Allowed(
        components=component_names(),
        backends=backend_names(),
        models={
            **{model: profile_names(model) for model in model_names()},
            **dict.fromkeys(installed_names(), ()),  # which profiles those have is known when they are opened
        },
        metrics={"parity": (*parity, ERROR_OVER_STOCK), "perf": (*TIMING_METRICS, *BESIDE.values(), *parity)},
    )

"""From the case file to test items: one for each case of the suite that a test is marked with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from wan_trt_core.pytest_plugin import checkpoints, options, xdist

if TYPE_CHECKING:
    from wan_trt_core.cases import Case, Suite
    from wan_trt_core.pytest_plugin.session import WanSession

FIXTURE = "wan_case"


@dataclass(frozen=True)
class NoCases:
    """Stands for the cases of a suite that has none: a test on it fails, for nothing would be judged."""

    suite: Suite
    path: Path

    @property
    def message(self) -> str:
        """What is wrong and what to do."""
        return (
            f"no case of {self.path} has a {self.suite} gate, so the {self.suite} suite judges nothing: "
            f"give a case the key '{self.suite}', or leave the suite out with -m 'not {self.suite}'"
        )


@dataclass(frozen=True)
class Subject:
    """What an item judges."""

    case: Case | NoCases
    suite: Suite

    @property
    def name(self) -> str:
        """The case's id; what stands for it where there is none."""
        return f"no-{self.suite}-cases" if isinstance(self.case, NoCases) else self.case.id


def suite_of(node: pytest.Item | pytest.Function) -> Suite:
    """The suite that a test with ``wan_case`` is marked with.

    Raises:
        pytest.fail.Exception: when it is marked with none, or with several.
    """
    marked = [suite for suite in options.MARKERS if node.get_closest_marker(suite)]
    if len(marked) != 1:
        found = " and ".join(marked) or "none"
        allowed = ", ".join(options.MARKERS)
        message = f"{node.nodeid}: a test with {FIXTURE} has one of the markers {allowed}, not {found}"
        pytest.fail(message, pytrace=False)
    return marked[0]


def subject_of(item: pytest.Item) -> Subject | None:
    """What an item judges; ``None`` for every test that is not ours."""
    callspec = getattr(item, "callspec", None)
    case = callspec.params.get(FIXTURE) if callspec else None
    return None if case is None else Subject(case, suite_of(item))


def parametrize(metafunc: pytest.Metafunc, session: WanSession) -> None:
    """Give a test that asks for ``wan_case`` the cases of its suite."""
    if FIXTURE not in metafunc.fixturenames:
        return
    suite = suite_of(metafunc.definition)
    nothing = NoCases(suite, session.case_path)
    cases = (_cases(session, suite) if session.refusal is None else ()) or (nothing,)
    ids = [Subject(case, suite).name for case in cases]
    metafunc.parametrize(FIXTURE, cases, ids=ids, indirect=True)


def _cases(session: WanSession, suite: Suite) -> tuple[Case, ...]:
    from wan_trt_core.cases import CaseFileError
    from wan_trt_core.config import ConfigError

    try:
        return session.cases(suite)
    except (CaseFileError, ConfigError) as error:
        # the whole collection is refused once it is complete, with this one message
        session.refusal = str(error)
        return ()


def check(session: WanSession, items: list[pytest.Item]) -> None:
    """Refuse a selection that cannot be judged.

    Raises:
        pytest.UsageError: with what is wrong (under xdist the controller raises it in effect).
    """
    subjects = [(item, subject) for item in items if (subject := subject_of(item))]
    session.selected = frozenset(subject.suite for _, subject in subjects)
    cases = [subject.case for _, subject in subjects if not isinstance(subject.case, NoCases)]
    session.backends = {case.backend for case in cases}
    perf = {item.nodeid: subject.case for item, subject in subjects if subject.suite == "perf"}
    backends = {getattr(case, "backend", None) for case in perf.values()}
    refusal = session.refusal or _judged_twice([subject for _, subject in subjects])
    refusal = refusal or _unusable_backend(session.backends)
    refusal = refusal or xdist.perf_refusal(session, list(perf), backends)
    refusal = refusal or _no_budget(session, [subject for _, subject in subjects])
    refusal = refusal or _two_devices(session, cases)
    refusal = refusal or checkpoints.refusal(session, cases)
    refusal = refusal or (_unknown_hardware(session) if subjects else None)
    if refusal:
        xdist.refuse(session, items, refusal)
    if subjects:
        from wan_trt_core.measure.environment import throttle_counters

        session.throttle_before = throttle_counters()


def _unusable_backend(backends: Collection[str]) -> str | None:
    """Why one that another package brings cannot be used; those of this package say it when a case needs them."""
    from wan_trt_core.backends.registry import UnknownBackend, runs_on

    try:
        for backend in sorted(backends):
            runs_on(backend)
    except UnknownBackend as error:
        return str(error)
    return None


def _two_devices(session: WanSession, cases: list[Case]) -> str | None:
    """Why the results cannot be filed: those of a CPU and of a GPU have each their own hardware key, a run has one."""
    from wan_trt_core.backends.registry import device_of

    of = {device_of(session.settings, case.backend): case for case in cases}
    if len(of) < 2:
        return None
    told = " and ".join(f"{case.id} on {device} ({case.backend})" for device, case in sorted(of.items()))
    return (
        f"the selected cases run on two devices, {told}, and the results of a run are stored under one hardware key;"
        " run one device's cases at a time (-k), or all on one backend (--wan-backend)"
    )


def _unknown_hardware(session: WanSession) -> str | None:
    """Why this machine has no name to store its results under: a GPU is asked for and not there."""
    try:
        return None if session.hardware_key else "this machine has no hardware key"
    except RuntimeError as error:
        return str(error)


def _no_budget(session: WanSession, subjects: list[Subject]) -> str | None:
    """Why the memory budget cannot hold: only a GPU's memory can be taken away from a process."""
    cases = [s.case for s in subjects if s.suite == "memory" and not isinstance(s.case, NoCases)]
    if not cases or session.settings.memory.budget is None:
        return None
    from wan_trt_core.backends.registry import device_of

    for case in cases:
        if device_of(session.settings, case.backend) == "cpu":
            source = session.loaded.sources["memory.budget"]
            return (
                f"{source}: a memory budget is of a GPU, and the memory case {case.id} runs on the CPU"
                f" ({case.backend}); name a backend for GPUs with --wan-backend, or leave the budget out"
            )
    return None


def _judged_twice(subjects: list[Subject]) -> str | None:
    """Results are kept by case: of two tests on one case, one would vanish."""
    count = Counter((subject.name, subject.suite) for subject in subjects)
    for (name, suite), number in count.items():
        if number > 1:
            return (
                f"{number} of the selected tests judge case {name} in the {suite} suite, and a case has one "
                "result; select one of them by its path"
            )
    return None

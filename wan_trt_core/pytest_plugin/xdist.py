"""What pytest-xdist changes: workers collect and run, the controller reports, and a device cannot be shared.

The controller collects nothing, so a refusal found by a worker travels to it in ``workeroutput``; there it
becomes a usage error (exit code 4) instead of a run of no tests.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from wan_trt_core.pytest_plugin.session import WanSession

REFUSAL = "wan_trt_refusal"
GPU, HARDWARE = "wan_trt_gpu", "wan_trt_hardware_key"
"""What the controller tells each worker: the GPU that it owns, and the machine's name."""

LOCK_SECONDS = 2.0
"""How long a worker waits for its GPU: a run that has just ended lets go of it by then."""


def is_worker(config: pytest.Config) -> bool:
    """Whether this process is one of xdist's workers."""
    return hasattr(config, "workerinput")


def register(session: WanSession) -> None:
    """Listen to workers, where there is xdist."""
    if session.config.pluginmanager.hasplugin("xdist"):
        session.config.pluginmanager.register(Controller(session), "wan_trt_xdist")


def perf_refusal(session: WanSession, perf: Sequence[str], backends: Collection[str | None]) -> str | None:
    """Why the performance tests of these ids, on these backends, cannot be timed here; ``None`` when they can.

    Workers share the machine, and whoever shares it measures the others as well, unless each has a GPU of its own:
    then this worker takes the one that the controller gave it, and keeps it until it ends.
    """
    if not perf or not is_worker(session.config):
        return None
    given: dict[str, str] = session.config.workerinput  # type: ignore[attr-defined]
    if GPU in given and _on_gpu(session, backends):
        return _take(session, given[GPU], given[HARDWARE])
    return (
        "performance cannot be measured under pytest-xdist, whose workers disturb each other's times, unless each has "
        f"a GPU of its own: {len(perf)} perf tests are selected ({perf[0]} …). Run them alone with "
        "'pytest -m perf -n0' (or '-p no:xdist'), and the others with 'pytest -m \"not perf\"'"
    )


def _on_gpu(session: WanSession, backends: Collection[str | None]) -> bool:
    """Whether all of these run on a GPU; then the reference beside each does too."""
    from wan_trt_core.backends.registry import device_of

    return all(device_of(session.settings, backend) == "cuda" for backend in backends)


def _take(session: WanSession, gpu: str, hardware_key: str) -> str | None:
    """Use this GPU and no other, and lock it against other runs; returns why that is impossible."""
    from filelock import FileLock, Timeout

    from wan_trt_core.measure.environment import slug
    from wan_trt_core.measure.gpus import VISIBLE

    os.environ[VISIBLE] = gpu
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        uuid = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
        if gpu.startswith("GPU-") and uuid != gpu:
            return f"this worker is to use {gpu}, but something used CUDA while tests were collected, and holds {uuid}"
    path = session.settings.cache / "locks" / f"{slug(gpu)}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        session.hold(FileLock(path).acquire(timeout=LOCK_SECONDS))
    except Timeout:
        return f"another run measures performance on the GPU {gpu} (it holds {path}); run again when it has ended"
    # without a key the controller, which collects nothing, did not know that the run is of a GPU
    if hardware_key and session.hardware_key != hardware_key:
        return f"the GPUs differ ({session.hardware_key}, {hardware_key}), and a run has one hardware key; choose some"
    return None


def refuse(session: WanSession, items: list[pytest.Item], message: str) -> None:
    """Stop before anything runs.

    Raises:
        pytest.UsageError: unless this is a worker, which tells its controller and runs nothing.
    """
    session.refusal = message
    if not is_worker(session.config):
        raise pytest.UsageError(message)
    output: dict[str, Any] = session.config.workeroutput  # type: ignore[attr-defined]
    output[REFUSAL] = message
    items.clear()


class Controller:
    """Hooks that exist only where xdist is installed."""

    def __init__(self, session: WanSession) -> None:
        self.session = session
        self._distributed = session.config.getoption("dist", "no") != "no"
        self._owned: dict[str, str] = {}

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Give a worker a GPU of its own, where there is one for each on this machine; perf tests make it use it."""
        specs = node.nodemanager.specs
        if not self.session.active or not all(spec.popen for spec in specs):
            return
        from wan_trt_core.measure.gpus import visible_gpus

        gpus = visible_gpus()
        if len(gpus) < len(specs):
            return
        try:
            on_gpu = _on_gpu(self.session, [self.session.backend])
            node.workerinput[HARDWARE] = self.session.hardware_key if on_gpu else ""
        except (ValueError, RuntimeError):  # a wrong setting, or no GPU: collection says so
            return
        free = next(gpu for gpu in gpus if gpu not in self._owned.values())
        node.workerinput[GPU] = self._owned[node.gateway.id] = free

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """Take over a worker's refusal, and its GPU for its successor; a worker that died left no output."""
        self._owned.pop(node.gateway.id, None)
        message = getattr(node, "workeroutput", {}).get(REFUSAL)
        if message:
            self.session.refusal = message

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """A worker's refusal is a usage error of the whole run."""
        if self.session.refusal:
            session.exitstatus = pytest.ExitCode.USAGE_ERROR

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say why nothing ran."""
        if self._distributed and self.session.refusal:
            terminalreporter.write_line(f"ERROR: {self.session.refusal}", red=True)

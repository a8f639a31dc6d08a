"""TensorRT's builder seen from outside: how far it is, and how to stop it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from wan_trt_core.backends.base import EngineError, Progress
from wan_trt_core.backends.tensorrt.api import tensorrt
from wan_trt_core.backends.tensorrt.cuda import free_memory, on_callers_gpu

_POLL_SECONDS = 0.1


class Phases:
    """The builder's nested phases as one fraction.

    Each phase is as long as one step of the phase that it is part of, so the fraction never goes back. The
    builder calls from threads of its own.

    Attributes:
        seconds: that each phase took, the phases that it was made of among them.
        cancelled: whether the builder is asked to stop.
    """

    def __init__(self, report: Progress) -> None:
        self._report = report
        self._lock = threading.Lock()
        self._open: dict[str, tuple[str | None, int, int]] = {}
        self._began: dict[str, float] = {}
        self._shown = 0.0
        self.seconds: dict[str, float] = {}
        self.cancelled = False

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase of ``steps`` steps begins."""
        with self._lock:
            self._open[name] = (parent, max(steps, 1), 0)
            self._began[name] = time.perf_counter()
        self._tell(name)

    def step(self, name: str, done: int) -> bool:
        """Step ``done`` (from 0) is complete; False asks the builder to stop."""
        with self._lock:
            if name in self._open:
                parent, steps, _ = self._open[name]
                self._open[name] = (parent, steps, done + 1)
        self._tell(name)
        return not self.cancelled

    def finish(self, name: str) -> None:
        """A phase ends, perhaps before its last step."""
        with self._lock:
            self._open.pop(name, None)
            if name in self._began:
                took = time.perf_counter() - self._began.pop(name)
                self.seconds[name] = self.seconds.get(name, 0.0) + took

    def _tell(self, name: str) -> None:
        with self._lock:
            self._shown = max(self._shown, min(self._fraction(), 1.0))
            shown = self._shown
        self._report(name, shown)

    def _fraction(self) -> float:
        fraction, weight, parent = 0.0, 1.0, None
        for name, (above, steps, done) in self._open.items():
            if above != parent and parent is not None:
                continue
            fraction += weight * min(done, steps) / steps
            weight /= steps
            parent = name
        return fraction


def monitor(phases: Phases) -> Any:
    """TensorRT's progress monitor that tells ``phases``."""
    trt = tensorrt()

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            phases.start(name, parent, steps)

        def step_complete(self, name: str, step: int) -> bool:
            return phases.step(name, step)

        def phase_finish(self, name: str) -> None:
            phases.finish(name)

    return Monitor()


def interruptible(call: Callable[[], Any], phases: Phases) -> Any:
    """Run a build so that Ctrl-C stops it: Python delivers the signal to the main thread, so that one only waits.

    Raises:
        KeyboardInterrupt, SystemExit: of a signal, after the builder has stopped.
        EngineError: when ``call`` raises, from its error; with what is free on the GPU.
    """
    outcome: list[Any] = []
    failure: list[BaseException] = []
    gpu = on_callers_gpu()
    done = (
        threading.Event()
    )  # not Thread.join: interrupted once, it takes the thread for ended (CPython 3.11, 3.12)

    def work() -> None:
        try:
            with gpu:
                outcome.append(call())
        except Exception as error:
            failure.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=work, name="tensorrt-build")
    try:
        thread.start()
        while not done.wait(_POLL_SECONDS):
            pass
    except BaseException:  # SIGTERM too, as whatever a signal's handler raises
        phases.cancelled = True
        if thread.ident is not None:
            done.wait()
        raise
    if failure:
        raise EngineError(f"TensorRT's builder failed: {failure[0]}; {free_memory()}") from failure[0]
    return outcome[0]

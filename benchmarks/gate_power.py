"""How often does the performance gate err? Traces with a known truth, judged by it and by the rules of others.

    python benchmarks/gate_power.py --runs 1000 --json gate_power.json

Each run is made up of one reference and one candidate timed in interleaved pairs, judged by the very functions that
the suites call (``decide_speedup`` look by look, then ``judge``), under clocks that misbehave in a known way, or
that were recorded (``benchmarks/traces``). The true ratio is set by scaling the candidate. The same times are then
given to two rules that others use:

* pytest-benchmark 5.3.1, ``--benchmark-compare-fail=median:N%``: fails when the median is more than N % over the stored
  one (``PercentageRegressionCheck`` in ``pytest_benchmark/utils.py``);
* nvbench, ``python/scripts/nvbench_compare.py`` at 66212f1: ``SLOW`` when the mean is later by more than the smaller
  of the two relative standard deviations.

Neither knows a ratio of two arms, so the reference's times over the threshold stand in for the stored ones, and both
see all the pairs. The table goes to the terminal as Markdown; ``docs/gates.md`` holds and explains it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wan_trt_core.baselines import BaselineError, new_entry
from wan_trt_core.cases import Band, Case, Limit, PerfGate
from wan_trt_core.config import PerfSettings
from wan_trt_core.gates import Verdict, decide, judge
from wan_trt_core.gates.bands import BaselineEntry
from wan_trt_core.gates.perf import decide_speedup, precision_of, speedup_rule
from wan_trt_core.gates.statistics import SamplingPlan, paired_ratio
from wan_trt_core.measure.timing import Pair, PairedTimes
from wan_trt_core.records import Measurement, Metric

Array = NDArray[np.float64]
Noise = Callable[[np.random.Generator, int, int], Array]
"""Log deviations of (generator, runs, pairs): (runs, pairs, 2), reference and candidate."""

TRACES = Path(__file__).parent / "traces"
SEED = 20261121
INCONCLUSIVE = 0.05
"""Share of runs that may end undecided, in any row with a target."""

SIGMA = 0.01
"""One standard deviation of one time, 1 %."""

BLOCK = 4
"""Pairs that are resampled together: two rounds of ABBA, so that what follows the order stays."""

THRESHOLD, FASTER, REGRESSION = 1.5, 1.6, 1.03
BASELINE_RUNS = 3
BANDS = {
    "speedup": Band(
        rel=0.0175, reason="between identical code and 3 %: errs the rarer way at equal distance"
    ),
    "reference_time": Band(rel=0.15, reason="the machine's own speed"),
    "candidate_time": Band(rel=0.15, reason="the machine's own speed"),
}
LOUD = "CPU, as recorded"
"""Far beyond 1 %: no target holds for it, it shows what the rules do then."""

COMPARE_FAIL = 0.02
"""``median:2%``: pytest-benchmark takes whole per cents, and this one lies between 0 and 3."""


# ---- traces -----------------------------------------------------------------------------------------------


def steady(rng: np.random.Generator, runs: int, pairs: int) -> Array:
    return rng.normal(0, SIGMA, (runs, pairs, 2))


def drift(rng: np.random.Generator, runs: int, pairs: int) -> Array:
    """The machine gets 5 % slower or faster while it is measured."""
    slope = rng.choice([-0.05, 0.05], (runs, 1))
    return steady(rng, runs, pairs) + _paired(slope * np.linspace(0, 1, 2 * pairs))


def outliers(rng: np.random.Generator, runs: int, pairs: int) -> Array:
    """One time in twenty is late, by 15 % on average."""
    late = rng.random((runs, pairs, 2)) < 0.05
    return steady(rng, runs, pairs) + late * rng.exponential(0.15, (runs, pairs, 2))


def bimodal(rng: np.random.Generator, runs: int, pairs: int) -> Array:
    """The clock has two states 8 % apart, and changes with one chance in ten after each time."""
    start = rng.integers(0, 2, (runs, 1))
    state = (start + np.cumsum(rng.random((runs, 2 * pairs)) < 0.1, axis=1)) % 2
    return steady(rng, runs, pairs) + _paired(0.08 * state)


def autocorrelated(rng: np.random.Generator, runs: int, pairs: int) -> Array:
    """Each arm's times follow its own last one (first order, 0.6), which pairs do not cancel."""
    steps = steady(rng, runs, pairs)
    for pair in range(1, pairs):
        steps[:, pair] = 0.6 * steps[:, pair - 1] + 0.8 * steps[:, pair]
    return steps


def _paired(times: Array) -> Array:
    """What happened in time order, as pairs in ABBA order: (runs, 2 * pairs) to (runs, pairs, 2)."""
    pairs = times.reshape(len(times), -1, 2).copy()
    pairs[:, 1::2] = pairs[:, 1::2, ::-1]
    return pairs


def recorded(file: Path, scaled: bool = False) -> Noise:
    """A moving-block bootstrap (Künsch, Annals of Statistics 17, 1989) of pairs that were measured once.

    Each run takes one of the file's traces, and from it blocks of :data:`BLOCK` pairs that begin at an even one. What
    pairs have in common with their neighbours, and what depends on which arm goes first, stays so. Times become
    deviations from their arm's median, then the candidate is shifted until the ratio of all blocks is one.

    Args:
        scaled: shrink or stretch the deviations until what the pairs do not cancel is :data:`SIGMA` a time.
    """
    traces = [_blocks(trace) for trace in json.loads(file.read_text())["traces"]]
    if scaled:
        traces = [blocks * (SIGMA / _sigma(blocks)) for blocks in traces]

    def noise(rng: np.random.Generator, runs: int, pairs: int) -> Array:
        count = -(-pairs // BLOCK)
        out = np.empty((runs, count * BLOCK, 2))
        for run in range(runs):
            blocks = traces[run % len(traces)]
            out[run] = blocks[rng.integers(0, len(blocks), count)].reshape(-1, 2)
        return out[:, :pairs]

    return noise


def _blocks(trace: dict[str, Any]) -> Array:
    logs = np.log([trace["reference_s"], trace["candidate_s"]]).T
    logs -= np.median(logs, axis=0)
    blocks = np.stack([logs[at : at + BLOCK] for at in range(0, len(logs) - BLOCK + 1, 2)])
    every = np.exp(blocks.reshape(-1, 2))
    blocks[:, :, 1] += np.log(paired_ratio(every[:, 0], every[:, 1]))
    return blocks


def _sigma(blocks: Array) -> float:
    """Standard deviation of one time, without what both times of a pair have in common."""
    return float(np.std(blocks[:, :, 0] - blocks[:, :, 1]) / np.sqrt(2))


def noises() -> dict[str, Noise]:
    """Every kind of noise by the name it has in the table; the targets hold for all but the last."""
    h200, cpu = TRACES / "h200.json", TRACES / "cpu.json"
    return {
        "steady": steady,
        "drift": drift,
        "outliers": outliers,
        "bimodal clocks": bimodal,
        "autocorrelation": autocorrelated,
        "H200, as recorded": recorded(h200),
        "H200, scaled to 1 %": recorded(h200, scaled=True),
        "CPU, scaled to 1 %": recorded(cpu, scaled=True),
        LOUD: recorded(cpu),
    }


# ---- judges -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One measurement, and all the times that the rules of others see: (pairs, 2) seconds."""

    measurement: Measurement
    times: Array


def measured(case: Case, noise: Array, ratio: float) -> Run:
    """What the perf suite records of these deviations: (A/A pairs + pairs, 2).

    The A/A pairs come first, then pairs until the gate decides.
    """
    gate, settings = case.perf, PerfSettings()
    assert gate is not None
    times = 0.1 * np.exp(noise)
    aa, pairs = times[: settings.noise_pairs], times[settings.noise_pairs :] / (1.0, ratio)
    plan = SamplingPlan(settings.min_pairs, settings.max_pairs, confidence=settings.confidence)
    facts = {"sampling_plan": asdict(plan), "steps": 1}
    a, b = pairs.T.tolist()
    series = {"noise_first_s": aa[:, 0].tolist(), "noise_second_s": aa[:, 1].tolist()}
    rule = speedup_rule(gate.speedup, series, facts, precision_of(gate))
    check = decide_speedup(a, b, rule, final=True)
    assert check is not None
    stopped = check.evidence["pairs"]
    taken = PairedTimes(
        tuple(Pair(*pair) for pair in zip(a[:stopped], b[:stopped], strict=True)),
        tuple(Pair(*pair) for pair in aa.tolist()),
        settings.warmup,
        1,
        "decided",
        0.0,
    )
    right = {"non_finite": Metric(value=0.0, unit="", better="lower")}
    right |= {"psnr_db": Metric(value=120.0, unit="dB", better="higher")}
    measurement = Measurement(metrics=taken.metrics() | right, series=taken.series(), facts=facts)
    return Run(measurement, pairs)


def gate_verdict(case: Case, run: Run, baseline: BaselineEntry | None) -> Verdict:
    """What the perf suite says of it."""
    checks = judge(
        case, "perf", run.measurement, baseline, bands_for_hardware=baseline is not None, require_bands=False
    )
    return decide(checks).verdict


def pytest_benchmark_fails(stored: Array, times: Array, allowed: float) -> bool:
    """``--benchmark-compare-fail=median:N%``."""
    return bool(np.median(times) / np.median(stored) - 1 > allowed)


def nvbench_slow(stored: Array, times: Array) -> bool:
    """``SLOW`` of ``nvbench_compare.py``."""
    noise = min(x.std(ddof=1) / x.mean() for x in (stored, times))
    return bool(times.mean() / stored.mean() - 1 > noise)


# ---- questions --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One question under one noise; shares of the runs.

    Attributes:
        wrong: ours answered wrongly: see the question.
        inconclusive: ours gave no answer (where that counts as wrong as well, it is in both).
        pairs: median of the pairs that ours took.
        pytest_benchmark: wrong by its rule.
        nvbench: wrong by its rule.
        target: ``wrong`` at most; ``None`` where the noise is beyond what the targets are for.
    """

    noise: str
    question: str
    runs: int
    wrong: float
    inconclusive: float
    pairs: float
    pytest_benchmark: float
    nvbench: float
    target: float | None

    @property
    def met(self) -> bool:
        """This gate meets the target, and is inconclusive in at most 5 % of the runs."""
        return self.target is None or (self.wrong <= self.target and self.inconclusive <= INCONCLUSIVE)


def make_case(bands: dict[str, Band]) -> Case:
    """A perf case held to :data:`THRESHOLD`."""
    right = Limit(min=60, reason="the outputs are right here")
    return Case(
        id="power",
        model="tiny-wan",
        component="dit",
        profile="128p-17f",
        precision="fp32",
        backend="onnxruntime",
        perf=PerfGate(speedup=THRESHOLD, parity={"psnr_db": right}, bands=bands),
    )


def against_threshold(name: str, noise: Array, ratio: float) -> Row:
    """Does a true ratio get through the gate? Under the threshold a pass is wrong, over it all else is."""
    case = make_case({})
    too_slow = ratio < THRESHOLD
    runs = [measured(case, x, ratio) for x in noise]
    verdicts = [gate_verdict(case, run, None) for run in runs]
    stored = [(run.times[:, 0] / THRESHOLD, run.times[:, 1]) for run in runs]
    return Row(
        name,
        f"true {ratio}x passes" if too_slow else f"true {ratio}x does not pass",
        len(runs),
        _share((v is Verdict.PASS) is too_slow for v in verdicts),
        _share(v is Verdict.INCONCLUSIVE for v in verdicts),
        median(len(run.measurement.series["candidate_s"]) for run in runs),
        _share(pytest_benchmark_fails(*x, 0.0) is not too_slow for x in stored),
        _share(nvbench_slow(*x) is not too_slow for x in stored),
        None if name == LOUD else 0.01,
    )


def against_baseline(name: str, noise: Array, before: Sequence[Run], slower: float) -> Row:
    """Is a change of the candidate seen against earlier runs, and no change left alone?"""
    case = make_case(BANDS)
    runs = [measured(case, x, FASTER / slower) for x in noise]
    flagged, others, theirs = [], [], []
    for at, run in enumerate(runs):
        baseline, earlier = _baseline(case, before, at)
        flagged.append(gate_verdict(case, run, baseline))
        stored, times = np.concatenate([e.times[:, 1] for e in earlier]), run.times[:, 1]
        others.append(pytest_benchmark_fails(stored, times, COMPARE_FAIL))
        theirs.append(nvbench_slow(stored, times))
    regressed = slower > 1
    return Row(
        name,
        f"{slower - 1:.0%} regression is missed" if regressed else "identical code is flagged",
        len(runs),
        _share((v is Verdict.FAIL) is not regressed for v in flagged),
        _share(v is Verdict.INCONCLUSIVE for v in flagged),
        median(len(run.measurement.series["candidate_s"]) for run in runs),
        _share(failed is not regressed for failed in others),
        _share(slow is not regressed for slow in theirs),
        None if name == LOUD else 0.05 if regressed else 0.01,
    )


def _baseline(case: Case, before: Sequence[Run], at: int) -> tuple[BaselineEntry, list[Run]]:
    """Of three runs that agree to within the band: the tool refuses others, and one measures again."""
    assert case.perf is not None
    for skipped in range(len(before)):
        picks = (BASELINE_RUNS * (at + skipped) + k for k in range(BASELINE_RUNS))
        earlier = [before[pick % len(before)] for pick in picks]
        try:
            return new_entry(case.id, case.perf.bands, [run.measurement for run in earlier], {}), earlier
        except BaselineError:
            continue
    raise SystemExit("no three runs agree to within the bands: this noise admits no baseline")


def _share(found: Any) -> float:
    return float(np.mean(list(found)))


def table(runs: int, seed: int = SEED) -> list[Row]:
    """Every question under every noise."""
    settings, rows = PerfSettings(), []
    pairs = settings.noise_pairs + settings.max_pairs
    for number, (name, noise) in enumerate(noises().items()):
        rng = np.random.default_rng((seed, number))
        rows += [against_threshold(name, noise(rng, runs, pairs), ratio) for ratio in (1.45, 1.55)]
        before = [measured(make_case(BANDS), x, FASTER) for x in noise(rng, runs, pairs)]
        rows += [
            against_baseline(name, noise(rng, runs, pairs), before, slower) for slower in (1.0, REGRESSION)
        ]
    return rows


def verdicts_at(ratio: float, runs: int, seed: int = SEED) -> str:
    """What the gate says of one true ratio, as Markdown: the share of each verdict under every noise."""
    settings, case = PerfSettings(), make_case({})
    asked = (Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE)
    lines = [f"| true {ratio:g}x | {' | '.join(asked)} |", "|---|---|---|---|"]
    for number, (name, noise) in enumerate(noises().items()):
        drawn = noise(np.random.default_rng((seed, number)), runs, settings.noise_pairs + settings.max_pairs)
        found = [gate_verdict(case, measured(case, x, ratio), None) for x in drawn]
        lines.append(f"| {name} | {' | '.join(f'{_share(v is one for v in found):.1%}' for one in asked)} |")
    return "\n".join(lines)


def markdown(rows: Sequence[Row]) -> str:
    """The table; what is over its target is bold."""
    lines = [
        "| noise | what would be wrong | at most | this gate | inconclusive | pairs | pytest-benchmark | nvbench |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row.noise, row.question, "" if row.target is None else f"{row.target:.0%}"]
        cells += [_percent(row.wrong, row.target)]
        cells += [_percent(row.inconclusive, row.target and INCONCLUSIVE), f"{row.pairs:g}"]
        cells += [_percent(share, row.target) for share in (row.pytest_benchmark, row.nvbench)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _percent(share: float, most: float | None) -> str:
    return f"**{share:.1%}**" if most is not None and share > most else f"{share:.1%}"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=1000, help="simulated runs of each row (default: 1000)")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--at", type=float, metavar="RATIO", help="only the verdicts at this true ratio")
    options = parser.parse_args(arguments)
    if options.runs < BASELINE_RUNS:
        parser.error(f"--runs: at least {BASELINE_RUNS}, the runs behind a baseline")
    if options.at:
        print(verdicts_at(options.at, options.runs, options.seed))
        return
    rows = table(options.runs, options.seed)
    print(markdown(rows))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) | {"met": row.met} for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()

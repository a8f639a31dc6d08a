"""How long from the start of a process to the end of the first denoising step, with the engines in the cache?

    python benchmarks/start_up.py
    WAN_TRT_PERF__ALLOW_TF32=true python benchmarks/start_up.py --model wan2.1-t2v-1.3b --profile 480p-81f \\
        --backend tensorrt --precision dit=fp16,vae=fp32

Every run is a process of its own that does what a user's script does: it imports, loads a pipeline's modules, calls
``wan_trt_core.accelerate`` and generates. With ``--by run`` it does what ``wan-trt run`` does, which loads no weights
of what engines replace; with ``--by stock`` a start of diffusers alone, to see the others beside. One process before
them, which is not counted, builds what the cache lacks, reads every file once, and compiles every import: an installer
leaves Python's bytecode behind, but a machine that keeps none would compile PyTorch and diffusers anew in each start.
Loading a script's modules is the user's own ``from_pretrained`` and has nothing to do with engines; random weights,
which are drawn and not read, say nothing about it. So the sum is told with it and without. With ``--from-folder
FOLDER`` the model's weights, random ones too, are first saved there, unless they are, and every start reads them as a
script does. Where diffusers' own modules run in the place of an engine no time is told, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any
from unittest import mock

if TYPE_CHECKING:  # what a run imports is timed
    from wan_trt_core.config import Settings

IMPORTS, OWN, DEVICE, MODULES, WEIGHTS, LOOKED_UP, LOADED, REST, TEXT, STEP = STAGES = (
    "PyTorch and diffusers",
    "wan_trt_core",
    "device",
    "modules",
    "hash of the weights",
    "hash of the engines",
    "engines loaded",
    "the rest",
    "text encoder",
    "first step",
)
"""What time goes to. The first two are imports: from the start of the process, with Python's own, what a script with
stock diffusers imports too, and then what this project adds. ``device`` is the first use of a GPU; both hashes say
which engine it is, and that its files are whole; ``the rest`` is that of ``accelerate`` or ``run``."""

ACCELERATE, RUN, STOCK = WAYS = ("accelerate", "run", "stock")
"""Of putting engines into a pipeline: of a user's own, and of the command line's; or of using none."""


class FellBack(RuntimeError):
    """One of diffusers' own modules ran in the place of an engine."""


class FirstStep(Exception):
    """The first denoising step has ended."""


class Spent:
    """Seconds by stage: at every moment time is spent on one of them.

    Args:
        since: when the first of :data:`STAGES` began.
        clock: seconds, the same in every process; injected so that times can be tested.
    """

    def __init__(self, since: float, clock: Callable[[], float] = time.time) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._stage, self._since, self._clock = STAGES[0], since, clock

    def on(self, stage: str) -> str:
        """From now on time is spent on this; returns what it was spent on before."""
        now, before = self._clock(), self._stage
        self.seconds[before] += now - self._since
        self._stage, self._since = stage, now
        return before

    @contextmanager
    def in_calls(self, owner: type, name: str, stage: str) -> Iterator[None]:
        """Meanwhile calls of a method are a stage of their own."""
        method = getattr(owner, name)

        @wraps(method)
        def call(*args: Any, **keywords: Any) -> Any:
            before = self.on(stage)
            try:
                return method(*args, **keywords)
            finally:
                self.on(before)

        with mock.patch.object(owner, name, call):
            yield


def save(settings: Settings, folder: Path, *, text_encoder: bool = False) -> None:
    """Make the folder, with the whole pipeline of the model in float32; nothing is left of one that is not whole.

    Args:
        text_encoder: of random weights that of the published size, 23 GB; it has one layer otherwise.
    """
    from transformers import UMT5Config, UMT5EncoderModel

    from wan_trt_core.models.catalogue import resolve
    from wan_trt_core.models.checkpoint import EMBEDDED, Checkpoint

    model = resolve(settings.model, text_encoder=text_encoder)
    pipe = model.checkpoint.pipeline()
    if pipe.text_encoder is None:
        tokenizer, dim = Checkpoint.open(EMBEDDED).tokenizer(), pipe.transformer.config.text_dim
        config = UMT5Config(vocab_size=len(tokenizer), d_model=dim, d_ff=dim, num_layers=1, num_heads=1)
        pipe.register_modules(tokenizer=tokenizer, text_encoder=UMT5EncoderModel(config))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
        pipe.save_pretrained(Path(unfinished) / "model")
        of_model = {name: value for name, value in asdict(model.generation).items() if value is not None}
        (Path(unfinished) / "model" / "generation.json").write_text(json.dumps(of_model))
        os.replace(Path(unfinished) / "model", folder)


def start_up(
    settings: Settings,
    precision: str | dict[str, str],
    spent: Spent,
    by: str = ACCELERATE,
    folder: Path | None = None,
) -> None:
    """One start, in this process, when PyTorch and diffusers are imported.

    Args:
        precision: of the modules and the engines; the text encoder's is float32 unless it is named.
        spent: notes where the time goes.
        by: one of :data:`WAYS`.
        folder: from where the pipeline is read, as by a user's script; else it is that of the settings' checkpoint.

    Raises:
        FellBack: when a module of diffusers ran.
    """
    import torch

    import wan_trt_core
    from wan_trt_core.backends.registry import device_of, get_backend, with_backend
    from wan_trt_core.comparison.conditions import equal_conditions, synchronize
    from wan_trt_core.engine_cache import EngineCache
    from wan_trt_core.models.catalogue import resolve
    from wan_trt_core.models.loaded import LoadedCheckpoint
    from wan_trt_core.models.prompts import PROMPT
    from wan_trt_core.pipeline.acceleration import originals
    from wan_trt_core.pipeline.assembly import TEXT_ENCODER as TEXT_PART
    from wan_trt_core.pipeline.assembly import on_engines, replaced_precisions, text_precision
    from wan_trt_core.pipeline.engines import EngineStore
    from wan_trt_core.pipeline.generate import generate
    from wan_trt_core.pipeline.stages import stages

    settings = with_backend(settings)
    backend, device = get_backend(settings.backend), device_of(settings)
    spent.on(DEVICE)
    torch.zeros(1, device=device)
    spent.on(REST)
    model = resolve(settings.model, settings.checkpoint_of(settings.model))
    profile = model.profile(settings.profile)
    parts = (
        (type(model.checkpoint), "pipeline", MODULES),
        (type(model.checkpoint), "weights_sha256", WEIGHTS),
        (LoadedCheckpoint, "weights_sha256", WEIGHTS),
        (EngineCache, "get_or_make", LOOKED_UP),
        (type(backend), "load", LOADED),
    )

    def begin(stage: str, _index: int | None) -> None:
        spent.on(TEXT if stage == "text_encode" else STEP)

    def stop(_done: int, _steps: int) -> None:
        synchronize()
        raise FirstStep

    asked = model.generation.of_size(profile.opt)
    with ExitStack() as opened:
        for owner, name, stage in parts:
            opened.enter_context(spent.in_calls(owner, name, stage))
        if by == RUN:
            store = opened.enter_context(EngineStore(settings))
            pipe = on_engines(model, profile, precision, backend.name, store, settings, device)
        else:
            dtypes = {**replaced_precisions(precision), TEXT_PART: text_precision(precision)}
            before = spent.on(MODULES)
            pipe = model.checkpoint.pipeline(dtypes) if folder is None else _read(folder, dtypes)
            spent.on(before)
            if by == STOCK:
                pipe.to(device)
            else:
                wan_trt_core.accelerate(pipe, profile, precision=precision, settings=settings)
                for name, module in originals(pipe).items():
                    module.register_forward_pre_hook(_refuse(name))
        try:
            with equal_conditions(settings), stages(pipe, begin):
                generate(pipe, PROMPT, asked, on_step=stop)
        except FirstStep:
            spent.on(STEP)


def _read(folder: Path, precisions: Mapping[str, str]) -> Any:
    """A pipeline as a user reads it."""
    from diffusers import DiffusionPipeline

    from wan_trt_core.models.checkpoint import torch_dtype

    dtypes = {part: torch_dtype(precision) for part, precision in precisions.items()}
    return DiffusionPipeline.from_pretrained(folder, dtype={"default": torch_dtype("fp32"), **dtypes})


def _refuse(name: str) -> Callable[..., None]:
    def ran(*_: object) -> None:
        raise FellBack(f"diffusers' own {name} ran; see the log")

    return ran


def in_new_process(arguments: Sequence[str], bytecode: str) -> dict[str, float]:
    """The seconds by stage of a start of its own.

    Args:
        bytecode: folder that Python reads and writes it in.
    """
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": bytecode}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, __file__, *arguments, "--since", repr(time.time())]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        raise SystemExit(done.returncode)  # it has told why
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def told(runs: Sequence[Mapping[str, float]]) -> Iterator[str]:
    """Medians and ranges, as a table."""
    rows = [(stage, [run[stage] for run in runs]) for stage in STAGES]
    whole = [sum(run.values()) for run in runs]
    rows += [("all", whole), ("all but modules", [sum(run.values()) - run[MODULES] for run in runs])]
    yield f"{'':24}{'median':>10}   range over {len(runs)} starts"
    for name, seconds in rows:
        yield f"{name:24}{median(seconds):8.2f} s   {min(seconds):.2f} to {max(seconds):.2f} s"


def main(arguments: list[str] | None = None) -> None:
    """Print the table; write the seconds of every start to ``--json``."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for option in ("model", "checkpoint", "backend", "profile"):
        parser.add_argument(f"--{option}")
    parser.add_argument(
        "--precision", default="fp32", help="fp32, fp16, or dit=fp16,vae=fp32,text_encoder=bf16"
    )
    parser.add_argument("--by", choices=WAYS, default=ACCELERATE, help="what puts the engines in")
    parser.add_argument("--from-folder", type=Path, help="read the weights from here; saved first if missing")
    parser.add_argument(
        "--text-encoder", action="store_true", help="of random weights, save one of the published size"
    )
    parser.add_argument("--runs", type=int, default=3, help="starts that count")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--since", type=float, help=argparse.SUPPRESS)  # when this process was started
    given = parser.parse_args(arguments)
    if given.runs < 1:
        parser.error(f"--runs is {given.runs}, at least 1 is needed")
    if given.from_folder and given.checkpoint:
        parser.error("--from-folder is the checkpoint: name one of both")
    if given.text_encoder and not given.from_folder:
        parser.error("--text-encoder goes with --from-folder")
    if given.since is not None:
        _start(given)
        return
    if given.from_folder and not given.from_folder.exists():
        from wan_trt_core.config import load_settings

        save(
            load_settings(overrides={"model": given.model}).settings,
            given.from_folder,
            text_encoder=given.text_encoder,
        )
    with tempfile.TemporaryDirectory() as bytecode:
        in_new_process(arguments, bytecode)
        runs = [in_new_process(arguments, bytecode) for _ in range(given.runs)]
    print("\n".join(told(runs)))
    if given.json:
        given.json.write_text(json.dumps({"arguments": arguments, "seconds": runs}, indent=2) + "\n")


def _start(given: argparse.Namespace) -> None:
    """What a process of its own does."""
    spent = Spent(given.since)
    from diffusers import WanPipeline  # noqa: F401

    spent.on(OWN)
    from wan_trt_core.config import load_settings

    named = {name: getattr(given, name) for name in ("model", "checkpoint", "backend", "profile")}
    named["checkpoint"] = given.from_folder or given.checkpoint
    settings = load_settings(overrides={**named, "on_missing_shape": "torch"}).settings
    precision: Any = given.precision
    if "=" in precision:  # read here: the command line's own reading imports what a user's script does not
        precision = dict(part.split("=") for part in precision.split(","))
    try:
        start_up(settings, precision, spent, given.by, given.from_folder)
    except FellBack as error:
        raise SystemExit(f"invalid: {error}") from error  # exit code 1
    print(json.dumps(spent.seconds))


if __name__ == "__main__":
    main()

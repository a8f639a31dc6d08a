"""How near do a transformer's products and attention come to what the card can do? Stored kernel times and shapes.

    python benchmarks/kernel_limits.py baselines/cuda-nvidia-h200-132sm-139gib

Nothing is measured here: the times are those of the kernels in the stored perf baselines (both arms of one call each),
the work follows from the shapes. What the embedding of the timestep does is left out, under two hundredths of all. The
table goes to the terminal as Markdown; ``docs/performance.md`` holds it. The last two columns are what is left to win:
how long the same work would take at the card's limit, and the speed-up over stock diffusers if all else took no time.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from wan_trt_core.baselines import read_baselines
from wan_trt_core.cases import load_cases
from wan_trt_core.models.catalogue import resolve
from wan_trt_core.models.components import get_component
from wan_trt_core.models.components.dit import Dit
from wan_trt_core.pytest_plugin.session import allowed_names
from wan_trt_core.report.markdown import markdown_table

PEAK_TFLOPS = 790
"""What an H200 reached in a plain product of FP16 or BF16 matrices, where 989 are on paper."""

FAR = 10
"""Where all else takes so many times what products and attention would at the card's limit, that limit says nothing."""

HEADER = ("case", "arm", "products", "", "attention", "", "at the limit", "at most")


def work(config: Mapping[str, Any], tokens: int, text_rows: int) -> dict[str, float]:
    """Floating-point operations of one call of a transformer, by the kernels that do them; a product and a sum are two.

    Args:
        config: of diffusers' ``WanTransformer3DModel``.
        tokens: of the video, which attend to each other.
        text_rows: of the prompt, which every token attends to.
    """
    width, layers = config["num_attention_heads"] * config["attention_head_dim"], config["num_layers"]
    patch = config["patch_size"][0] * config["patch_size"][1] * config["patch_size"][2]
    square = 2 * width**2  # of a row in a layer as wide as it is long
    of_tokens = (
        6 * square + 2 * 2 * width * config["ffn_dim"]
    )  # q, k, v, out; q, out; both of the feed-forward
    ends = tokens * 2 * width * (config["out_channels"] or config["in_channels"]) * patch
    ends += text_rows * (2 * config["text_dim"] * width + square)
    return {
        "products": layers * (tokens * of_tokens + text_rows * 2 * square) + ends,
        "attention": layers * 4 * width * tokens * (tokens + text_rows),
    }


def rows(folder: Path, cases: Path, peak: float) -> Iterator[tuple[str, ...]]:
    """A row for each arm of every transformer case that has kernels in the baselines of ``folder``; none of a model so
    small that its kernels are :data:`FAR` from the limit."""
    for case in load_cases(cases, allowed_names(), "--cases").cases:
        component = get_component(case.component) if case.component == "dit" else None
        if not isinstance(component, Dit) or case.settings or case.precision == "fp32":
            continue
        stored = read_baselines(folder.parent, folder.name, case.model, "perf")
        entry = stored.cases.get(case.id) if stored else None
        if entry is None or not entry.kernels:
            continue
        model = resolve(case.model, None, layers=case.layers)
        profile = model.profile(case.profile)
        config, tokens = model.checkpoint.config(component.part), component.tokens(profile.opt)
        reference = entry.kernels["reference"]
        arms = {
            "stock": (reference["groups_ms"], profile.opt.text_length),
            "TensorRT": (entry.kernels["groups_ms"], component.sizes_at(profile, "opt")["text_rows"]),
        }
        for arm, (taken, text_rows) in arms.items():
            done = work(config, tokens, text_rows)
            reached = {
                name: flop / taken[name] / 1e9 for name, flop in done.items()
            }  # 1e12 a second, of 1e-3
            least = sum(done.values()) / peak / 1e9
            at_most = reference["total_ms"] / least
            if at_most > FAR:
                continue
            yield (
                case.id,
                arm,
                *(
                    cell
                    for name, flop in done.items()
                    for cell in (
                        f"{flop / 1e12:,.1f} TFLOP in {taken[name]:,.1f} ms",
                        f"{reached[name]:,.0f} TFLOP/s, {reached[name] / peak:.0%}",
                    )
                ),
                f"{least:,.1f} ms",
                f"{at_most:.2f}x" if arm == "TensorRT" else "",
            )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="How near products and attention come to the card's limit.")
    parser.add_argument("baselines", type=Path, help="folder of a hardware's baselines")
    parser.add_argument("--cases", type=Path, default=Path("suites/cases.yaml"))
    parser.add_argument(
        "--peak", type=float, default=PEAK_TFLOPS, help="TFLOP/s of the card in a plain product"
    )
    options = parser.parse_args(arguments)
    try:
        found = tuple(rows(options.baselines, options.cases, options.peak))
    except ValueError as error:
        parser.error(str(error))
    if not found:
        parser.exit(
            1, f"{options.baselines}: no kernels of a half-precision transformer in the perf baselines\n"
        )
    print(markdown_table(HEADER, found))


if __name__ == "__main__":
    main()

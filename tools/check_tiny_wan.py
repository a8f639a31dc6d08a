"""Check that tiny-wan follows its prompts, through the stock diffusers pipeline on the CPU.

    python tools/check_tiny_wan.py --report docs/tiny_wan_check

generates 96 held-out captions (colour-shape-direction triples that training never saw), measures the frames
and writes `<report>.md` (the table) and `<report>.json` (every clip). The same measurement is first applied
to rendered ground truth, where it must be right, to captions shuffled among the clips, where it must be at
chance, and to the autoencoder's reconstructions.
"""

from __future__ import annotations

import argparse
import json
import math
import textwrap
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import clips
import torch

DEFAULT_MODEL = Path(__file__).resolve().parent.parent / "wan_trt_core" / "models" / "tiny_wan"
MEASURED = ("colour", "shape", "direction")
UNKNOWN = "none"

# A pixel belongs to the shape when its channels differ by this much (the ground is grey, the palette is not).
SATURATION_FLOOR = 0.12
SATURATION_SURE = 0.3
MIN_COLOURED_PIXELS = 40  # per frame on average; below it there is no shape to name
MIN_DRIFT = 4.0  # pixels over the clip; below it the shape stands still


@dataclass(frozen=True)
class Measurement:
    """What the frames of one clip show; each is a word of `clips.ATTRIBUTES` or "none"."""

    colour: str
    shape: str
    direction: str


@dataclass(frozen=True)
class Agreement:
    """Share of clips, in 0..1, whose measurement agrees with the caption."""

    colour: float
    shape: float
    direction: float

    def lowest(self) -> float:
        """The worst of the three."""
        return min(self.colour, self.shape, self.direction)


def saturation(video: torch.Tensor) -> torch.Tensor:
    """Largest minus smallest channel: (batch, 3, frames, H, W) in [0, 1] -> (batch, frames, H, W)."""
    return video.amax(1) - video.amin(1)


def dominant_colours(video: torch.Tensor) -> list[str]:
    """The palette colour that most saturated pixels are nearest to, brightness ignored.

    video: (batch, 3, frames, H, W) in [0, 1].
    """
    mask = saturation(video) > SATURATION_SURE
    pixels = video / video.amax(1, keepdim=True).clamp_min(0.05)
    palette = torch.tensor(list(clips.PALETTE.values()), device=video.device)
    palette = palette / palette.amax(1, keepdim=True)
    distances = torch.stack([(pixels - colour.view(1, 3, 1, 1, 1)).square().sum(1) for colour in palette])
    nearest = distances.argmin(0)
    votes = torch.stack([((nearest == index) & mask).sum((1, 2, 3)) for index in range(len(palette))], dim=1)
    names = list(clips.PALETTE)
    return [names[int(row.argmax())] if int(row.sum()) else UNKNOWN for row in votes]


def shape_templates(height: int, width: int, device: torch.device) -> tuple[torch.Tensor, list[str]]:
    """Zero-mean, unit-norm masks of all shapes and sizes, centred: (templates, H, W), and their shapes."""
    y = (torch.arange(height, device=device) + 0.5 - height / 2).view(-1, 1)
    x = (torch.arange(width, device=device) + 0.5 - width / 2).view(1, -1)
    masks, names = [], []
    for shape in clips.SHAPES:
        for radius in clips.RADII.values():
            mask = (0.5 - clips.signed_distance(shape, x, y, radius)).clamp(0, 1)
            mask = mask - mask.mean()
            masks.append(mask / mask.norm())
            names.append(shape)
    return torch.stack(masks), names


def best_shapes(video: torch.Tensor) -> list[str]:
    """The shape whose template correlates best with the saturation, over all positions and sizes.

    The correlation is normalised, computed for all shifts at once by FFT (circular: shapes stay inside the
    frame), and averaged over every second frame.

    video: (batch, 3, frames, H, W) in [0, 1].
    """
    maps = (saturation(video)[:, ::2] - SATURATION_FLOOR).clamp_min(0)
    maps = maps - maps.mean((-2, -1), keepdim=True)
    maps = maps / maps.flatten(-2).norm(dim=-1).clamp_min(1e-6)[..., None, None]
    height, width = maps.shape[-2:]
    templates, names = shape_templates(height, width, video.device)
    spectrum = torch.fft.rfft2(templates).conj()
    results = []
    for clip in maps:  # one clip at a time: (frames, templates, H, W) is the large intermediate
        correlation = torch.fft.irfft2(torch.fft.rfft2(clip)[:, None] * spectrum, s=clip.shape[-2:])
        results.append(names[int(correlation.amax((-2, -1)).mean(0).argmax())])
    return results


def drift_directions(video: torch.Tensor) -> list[str]:
    """Direction in which the coloured centroid moves, from a least-squares line through the frames.

    video: (batch, 3, frames, H, W) in [0, 1].
    """
    weights = (saturation(video) - SATURATION_FLOOR).clamp_min(0)
    frames, height, width = weights.shape[1:]
    mass = weights.sum((2, 3))  # (batch, frames)
    seen = (mass > 4.0).float()
    x = (weights.sum(2) * torch.arange(width, device=video.device)).sum(-1) / mass.clamp_min(1e-6)
    y = (weights.sum(3) * torch.arange(height, device=video.device)).sum(-1) / mass.clamp_min(1e-6)
    time_axis = torch.arange(frames, device=video.device).float().expand_as(mass)

    def slope(values: torch.Tensor) -> torch.Tensor:
        count = seen.sum(1, keepdim=True).clamp_min(1)
        centred_time = (time_axis - (time_axis * seen).sum(1, keepdim=True) / count) * seen
        centred = values - (values * seen).sum(1, keepdim=True) / count
        return (centred_time * centred).sum(1) / centred_time.square().sum(1).clamp_min(1e-6)

    results = []
    for dx, dy, count in zip(slope(x).tolist(), slope(y).tolist(), seen.sum(1).tolist(), strict=True):
        if count < 4 or max(abs(dx), abs(dy)) * (frames - 1) < MIN_DRIFT:
            results.append(UNKNOWN)
        elif abs(dx) > abs(dy):
            results.append("right" if dx > 0 else "left")
        else:
            results.append("down" if dy > 0 else "up")
    return results


def measure(video: torch.Tensor) -> list[Measurement]:
    """Colour, shape and direction of each clip, from its pixels alone.

    video: (batch, 3, frames, height, width), values in [0, 1], any device.
    """
    video = video.float()
    coloured = (saturation(video) > SATURATION_SURE).sum((1, 2, 3))
    enough = (coloured >= MIN_COLOURED_PIXELS * video.shape[2]).tolist()
    rows = zip(dominant_colours(video), best_shapes(video), drift_directions(video), enough, strict=True)
    nothing = Measurement(UNKNOWN, UNKNOWN, UNKNOWN)
    return [Measurement(*row) if visible else nothing for *row, visible in rows]


def agreement(measured: list[Measurement], specs: torch.Tensor) -> Agreement:
    """Compare measurements with what the captions say. specs: (batch, 6) indices."""
    wanted = [clips.describe(spec) for spec in specs]
    shares = {
        name: sum(getattr(m, name) == w[name] for m, w in zip(measured, wanted, strict=True)) / len(wanted)
        for name in MEASURED
    }
    return Agreement(**shares)


def shuffled_agreement(
    measured: list[Measurement], specs: torch.Tensor, permutations: int = 200
) -> Agreement:
    """Agreement with captions dealt to the wrong clips: the mean over random permutations, chance level."""
    generator = torch.Generator().manual_seed(0)
    totals = dict.fromkeys(MEASURED, 0.0)
    for _ in range(permutations):
        shuffled = agreement(measured, specs[torch.randperm(len(specs), generator=generator)])
        for name in MEASURED:
            totals[name] += getattr(shuffled, name) / permutations
    return Agreement(**totals)


def psnr(video: torch.Tensor, reference: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB of videos with values in [-1, 1] (peak-to-peak 2)."""
    return -10 * math.log10(((video - reference) / 2).square().mean().item())


def ground_truth(specs: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Rendered clips: (batch, 3, frames, height, width) in [-1, 1]. specs: (batch, 6) indices on the CPU."""
    return clips.render(specs, torch.Generator().manual_seed(seed)).video


@torch.no_grad()
def reconstruct(vae: Any, video: torch.Tensor, batch: int = 8) -> torch.Tensor:
    """Encode and decode through the stock `AutoencoderKLWan`, posterior mean. Same shape in and out."""
    chunks = [vae.decode(vae.encode(chunk).latent_dist.mode()).sample for chunk in video.split(batch)]
    return torch.cat(chunks)


def load_generation_defaults(folder: Path) -> dict[str, Any]:
    """The checkpoint's `generation.json`: call arguments for `WanPipeline`, plus `fps`."""
    return json.loads((folder / "generation.json").read_text())


def generate(
    pipe: Any, specs: torch.Tensor, defaults: dict[str, Any], *, seed: int, batch: int
) -> torch.Tensor:
    """Generate one clip per specification with the stock pipeline, clip `i` from seed `seed + i`.

    Returns (count, 3, frames, height, width) in [0, 1].
    """
    arguments = {key: value for key, value in defaults.items() if key != "fps"}
    pipe.set_progress_bar_config(disable=True)
    videos = []
    started = time.monotonic()
    for first in range(0, len(specs), batch):
        chunk = specs[first : first + batch]
        generators = [torch.Generator().manual_seed(seed + first + i) for i in range(len(chunk))]
        prompts = [clips.caption(spec) for spec in chunk]
        frames = pipe(prompts, generator=generators, output_type="pt", **arguments).frames
        videos.append(frames.transpose(1, 2).cpu())  # (batch, frames, 3, H, W) -> channels before frames
        done = first + len(chunk)
        print(f"generated {done}/{len(specs)} clips in {time.monotonic() - started:.0f} s", flush=True)
    return torch.cat(videos)


def draw_contact_sheet(video: torch.Tensor, captions: list[str], path: Path, columns: int = 5) -> None:
    """Lay out `columns` evenly spaced frames per clip, one captioned clip per row, two rows side by side.

    video: (clips, 3, frames, height, width) in [0, 1].
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    half = math.ceil(len(captions) / 2)
    chosen = torch.linspace(0, video.shape[2] - 1, columns).round().long().tolist()
    figure = plt.figure(figsize=(13, 1.07 * half + 0.35), dpi=100)
    left, right = figure.subfigures(1, 2, wspace=0.01, squeeze=False)[0]
    for block, first in ((left, 0), (right, half)):
        rows = list(range(first, min(first + half, len(captions))))
        axes = block.subplots(half, columns, squeeze=False)
        block.subplots_adjust(left=0.22, right=0.99, top=0.93, bottom=0.02, wspace=0.04, hspace=0.06)
        for axis in axes.flat:
            axis.axis("off")
        for line, row in enumerate(rows):
            label = textwrap.fill(captions[row], 16)
            axes[line][0].text(
                -0.08, 0.5, label, transform=axes[line][0].transAxes, ha="right", va="center", fontsize=9
            )
            for column, frame in enumerate(chosen):
                axes[line][column].imshow(video[row, :, frame].permute(1, 2, 0).clamp(0, 1).numpy())
                if line == 0:
                    axes[line][column].set_title(f"frame {frame}", fontsize=9)
    figure.savefig(path)
    plt.close(figure)


def pick_for_sheet(specs: torch.Tensor, count: int) -> list[int]:
    """Rows for the contact sheet: greedy, so that the attributes repeat as little as possible."""
    chosen: list[int] = []
    while len(chosen) < min(count, len(specs)):
        taken = specs[chosen]
        rest = [row for row in range(len(specs)) if row not in chosen]
        chosen.append(min(rest, key=lambda row: (int((taken == specs[row]).sum()), row)))
    return chosen


def markdown_table(results: dict[str, Any]) -> str:
    """The result table of `results`, as written by `main`."""
    lines = [
        "| measured on | clips | colour | shape | direction |",
        "|---|---|---|---|---|",
    ]
    for label, key in (
        ("rendered ground truth (the checker itself)", "ground_truth"),
        ("rendered ground truth, captions shuffled", "ground_truth_shuffled"),
        ("autoencoder reconstructions of held-out clips", "reconstructions"),
        ("**generated from held-out captions**", "generated"),
        ("generated, captions shuffled", "generated_shuffled"),
    ):
        row = results[key]
        cells = " | ".join(f"{100 * row[name]:.1f} %" for name in MEASURED)
        lines.append(f"| {label} | {row['clips']} | {cells} |")
    chance = [100 / len(clips.ATTRIBUTES[name]) for name in MEASURED]
    lines.append("| chance | | " + " | ".join(f"{value:.1f} %" for value in chance) + " |")
    lines += [
        "",
        f"Autoencoder PSNR on {results['reconstructions']['clips']} held-out clips: "
        f"{results['vae_psnr_db']:.1f} dB. Generation: {results['generated']['clips']} clips, "
        f"{results['generation_minutes']:.1f} minutes on {results['threads']} CPU threads "
        f"(batch {results['batch']}, seeds {results['seed']} to "
        f"{results['seed'] + results['generated']['clips'] - 1}).",
    ]
    return "\n".join(lines) + "\n"


def check(
    folder: Path, *, prompts: int, batch: int, seed: int, truth: int
) -> tuple[dict[str, Any], torch.Tensor]:
    """Run every measurement on the checkpoint in `folder`. Returns the results and the generated clips."""
    from diffusers import WanPipeline

    pipe = WanPipeline.from_pretrained(folder)
    results: dict[str, Any] = {"seed": seed, "batch": batch, "threads": torch.get_num_threads()}

    def record(key: str, measured: list[Measurement], specs: torch.Tensor, *, shuffled: bool = True) -> None:
        results[key] = {"clips": len(specs), **asdict(agreement(measured, specs))}
        if shuffled:
            results[f"{key}_shuffled"] = {"clips": len(specs), **asdict(shuffled_agreement(measured, specs))}
        print(key, results[key], flush=True)

    truth_specs = torch.cat([clips.all_specs(held_out=False), clips.all_specs(held_out=True)])
    step = max(1, len(truth_specs) // truth)
    truth_specs = truth_specs[::step][:truth]
    chunks = [ground_truth(chunk, seed=i) for i, chunk in enumerate(truth_specs.split(32))]
    truth_measured = [m for chunk in chunks for m in measure((chunk + 1) / 2)]
    record("ground_truth", truth_measured, truth_specs)

    specs = clips.held_out_benchmark(prompts)
    reference = ground_truth(specs[:48])
    rebuilt = reconstruct(pipe.vae, reference)
    record("reconstructions", measure((rebuilt + 1) / 2), specs[:48], shuffled=False)
    results["vae_psnr_db"] = psnr(rebuilt, reference)

    started = time.monotonic()
    video = generate(pipe, specs, load_generation_defaults(folder), seed=seed, batch=batch)
    results["generation_minutes"] = (time.monotonic() - started) / 60
    measured = [m for chunk in video.split(16) for m in measure(chunk)]
    record("generated", measured, specs)
    results["generations"] = [
        {"caption": clips.caption(spec), "seed": seed + i, **asdict(m)}
        for i, (spec, m) in enumerate(zip(specs, measured, strict=True))
    ]
    return results, video


def parse_arguments() -> argparse.Namespace:
    """The command line; see the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="checkpoint folder")
    parser.add_argument("--prompts", type=int, default=96, help="held-out captions to generate")
    parser.add_argument("--truth", type=int, default=432, help="rendered clips for the checker's own test")
    parser.add_argument("--batch", type=int, default=8, help="clips generated at once")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first clip")
    parser.add_argument(
        "--minimum", type=float, default=0.9, help="required agreement; below it, exit status 1"
    )
    parser.add_argument("--report", type=Path, help="write REPORT.md and REPORT.json")
    parser.add_argument("--contact-sheet", type=Path, help="write a PNG with eight of the clips")
    return parser.parse_args()


def main() -> int:
    """Check the checkpoint and write what was asked for; 1 where an agreement is below the minimum."""
    arguments = parse_arguments()
    results, video = check(
        arguments.model,
        prompts=arguments.prompts,
        batch=arguments.batch,
        seed=arguments.seed,
        truth=arguments.truth,
    )
    table = markdown_table(results)
    print(table)
    if arguments.report:
        arguments.report.with_suffix(".md").write_text(table)
        arguments.report.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    if arguments.contact_sheet:
        specs = clips.held_out_benchmark(arguments.prompts)
        rows = pick_for_sheet(specs, 8)
        captions = [clips.caption(specs[row]) for row in rows]
        draw_contact_sheet(video[rows], captions, arguments.contact_sheet)
    lowest = min(results["generated"][name] for name in MEASURED)
    passed = lowest >= arguments.minimum
    verdict = "PASS" if passed else "FAIL"
    print(f"{verdict}: lowest agreement {100 * lowest:.1f} %, required {100 * arguments.minimum:.0f} %")
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""Train tiny-wan, a small text-to-video model of the Wan 2.1 architecture, on rendered clips.

Three steps, each resumable; `--total-minutes` is the length of the learning-rate schedule and `--minutes` the
part of it that this call runs:

    python tools/train_tiny_wan.py vae --run outputs/tiny_wan --minutes 9 --total-minutes 9 --compile
    python tools/train_tiny_wan.py dit --run outputs/tiny_wan --minutes 14.2 --total-minutes 14.2 --compile
    python tools/train_tiny_wan.py export --run outputs/tiny_wan --output wan_trt_core/models/tiny_wan

`vae` trains the autoencoder and measures its latent statistics; `dit` trains the diffusion transformer
together with the text encoder on latents of freshly rendered clips; `export` writes the diffusers folder.
`plot` draws the loss curves and `init` writes an untrained checkpoint. Only the training split of `clips.py`
is trained on; the held-out clips are rendered for evaluation alone.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import clips
import torch
from check_tiny_wan import agreement, measure, psnr
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

GENERATION: dict[str, float | int] = {
    "height": clips.FRAME_SIZE,
    "width": clips.FRAME_SIZE,
    "num_frames": clips.NUM_FRAMES,
    "num_inference_steps": 20,
    "guidance_scale": 3.0,
    "max_sequence_length": 32,
    "fps": clips.FPS,
}
TEXT_LENGTH = int(GENERATION["max_sequence_length"])
LATENT_CHANNELS = 16
FLOW_SHIFT = 3.0
VOCABULARY = ("<pad>", "</s>", "<unk>", *dict.fromkeys(clips.CAPTION_WORDS))
VOCABULARY_SIZE = 32  # embedding rows; the vocabulary's size rounded up


# ------------------------------------------------------------------------------------------------- the model


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level tokenizer over the captions' vocabulary; lower-cases, drops punctuation, appends `</s>`."""
    vocabulary = {word: index for index, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation(behavior="removed")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
    )


def build_text_encoder() -> UMT5EncoderModel:
    """Two layers of width 64 without dropout, for the vocabulary of `build_tokenizer`."""
    config = UMT5Config(
        vocab_size=VOCABULARY_SIZE,
        d_model=64,
        d_kv=32,
        d_ff=128,
        num_layers=2,
        num_heads=2,
        dropout_rate=0.0,
        pad_token_id=VOCABULARY.index("<pad>"),
        eos_token_id=VOCABULARY.index("</s>"),
    )
    return UMT5EncoderModel(config)


def build_transformer() -> WanTransformer3DModel:
    """Two heads of 64, eight layers: every other setting is Wan 2.1's own default."""
    return WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=64, num_layers=8, ffn_dim=512, text_dim=64, freq_dim=128
    )


def build_vae(mean: torch.Tensor | None = None, std: torch.Tensor | None = None) -> AutoencoderKLWan:
    """Wan's autoencoder at a sixth of its width. mean, std: (16,) latent statistics, identity if left out."""
    mean = torch.zeros(LATENT_CHANNELS) if mean is None else mean
    std = torch.ones(LATENT_CHANNELS) if std is None else std
    return AutoencoderKLWan(base_dim=16, latents_mean=mean.tolist(), latents_std=std.tolist())


def build_scheduler() -> UniPCMultistepScheduler:
    """The scheduler that Wan ships with, at the flow shift of the training."""
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=FLOW_SHIFT,
        num_train_timesteps=1000,
    )


def encode(vae: AutoencoderKLWan, video: torch.Tensor) -> torch.Tensor:
    """Posterior parameters (mean and log-variance) in two calls: the first frame, then the rest with caches.

    Equal to `vae.encode`, which goes four frames at a time, and much faster.

    video: (batch, 3, frames, H, W) in [-1, 1]. Returns (batch, 32, 1 + (frames - 1) / 4, H / 8, W / 8).
    """
    cache: list[Any] = [None] * 64
    first = vae.encoder(video[:, :, :1], feat_cache=cache, feat_idx=[0])
    rest = vae.encoder(video[:, :, 1:], feat_cache=cache, feat_idx=[0])
    return vae.quant_conv(torch.cat([first, rest], dim=2))


def decode(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """Counterpart of `encode`, equal to `vae.decode` without its clamp.

    latents: (batch, 16, frames, H, W), not normalised. Returns (batch, 3, 4 * (frames - 1) + 1, 8 H, 8 W).
    """
    cache: list[Any] = [None] * 64
    features = vae.post_quant_conv(latents)
    first = vae.decoder(features[:, :, :1], feat_cache=cache, feat_idx=[0], first_chunk=True)
    rest = vae.decoder(features[:, :, 1:], feat_cache=cache, feat_idx=[0])
    return torch.cat([first, rest], dim=2)


class Denoiser(torch.nn.Module):
    """The text encoder and the diffusion transformer, trained together."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = build_transformer()
        self.text_encoder = build_text_encoder()

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Prompt embeddings exactly as `WanPipeline` makes them: zero rows after the last token.

        tokens: (batch, TEXT_LENGTH) ids. Returns (batch, TEXT_LENGTH, 64).
        """
        mask = (tokens != 0).long()
        return self.text_encoder(tokens, mask).last_hidden_state * mask[..., None]

    def forward(self, latents: torch.Tensor, timestep: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Predicted velocity. latents: (batch, 16, 5, 16, 16) noisy; timestep: (batch,) in 0..1000."""
        return self.transformer(latents, timestep, self.embed(tokens), return_dict=False)[0]


# ----------------------------------------------------------------------------------------- the training loop


@dataclass
class Run:
    """Where one stage keeps its files, below the run folder."""

    folder: Path
    stage: str

    @property
    def state(self) -> Path:
        """Everything that resuming needs."""
        return self.folder / f"{self.stage}_state.pt"

    @property
    def weights(self) -> Path:
        """The averaged weights, once the stage has ended."""
        return self.folder / f"{self.stage}.safetensors"

    @property
    def log(self) -> Path:
        """The recorded rows as CSV."""
        return self.folder / f"{self.stage}_log.csv"


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """Write beside the target and rename, so that an interruption leaves the previous state whole."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


class Ema:
    """Exponential moving average of a module's parameters; the average is what gets evaluated and shipped."""

    def __init__(self, module: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = list(module.parameters())
        self.shadow = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the parameters; `step` counts from 1."""
        # A short memory at first, so that the random start is forgotten.
        decay = min(self.decay, step / (step + 50.0))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self.parameters], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the averaged and the current parameters; call again to undo."""
        for parameter, average in zip(self.parameters, self.shadow, strict=True):
            current = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(current)


class Trainer:
    """What both stages share: schedule by wall clock, optimiser step, EMA, resumable state, CSV log."""

    def __init__(
        self,
        module: torch.nn.Module,
        run: Run,
        *,
        rate: float,
        betas: tuple[float, float],
        decay: float,
        minutes: float,
        total_minutes: float,
        seed: int,
    ) -> None:
        self.module, self.run, self.rate = module, run, rate
        self.budget, self.total = minutes * 60, total_minutes * 60
        self.optimizer = torch.optim.AdamW(
            module.parameters(), lr=rate, betas=betas, weight_decay=0.01, fused=True
        )
        self.ema = Ema(module, decay)
        self.step, self.spent, self.seed = 0, 0.0, seed
        self.rows: list[dict[str, float]] = []
        run.folder.mkdir(parents=True, exist_ok=True)
        if run.state.exists():
            self.load()
        self.started = time.monotonic()
        # Another stream of random numbers after each resumption, the same one in every repetition.
        self.stream = seed * 1000 + self.step

    def load(self) -> None:
        """Go on from the state on disk."""
        state = torch.load(self.run.state, map_location="cpu", weights_only=True)
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        for average, saved in zip(self.ema.shadow, state["ema"], strict=True):
            average.copy_(saved)
        self.step, self.spent, self.rows = state["step"], state["spent"], state["rows"]
        print(f"resumed {self.run.state} at step {self.step}, {self.spent / 60:.1f} minutes", flush=True)

    def save(self) -> None:
        """Write the state and the log."""
        state = {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.shadow,
            "step": self.step,
            "spent": self.elapsed(),
            "rows": self.rows,
        }
        save_atomically(state, self.run.state)
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        with self.run.log.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)

    def elapsed(self) -> float:
        """Seconds of training, over all calls."""
        return self.spent + time.monotonic() - self.started

    def fraction(self) -> float:
        """Position in the whole schedule, 0..1."""
        return min(1.0, self.elapsed() / self.total)

    def steps(self) -> Iterator[int]:
        """Step numbers until this call's minutes or the schedule are used up."""
        while self.elapsed() - self.spent < self.budget and self.fraction() < 1:
            self.step += 1
            yield self.step

    def update(self, loss: torch.Tensor) -> None:
        """Backward pass and optimiser step; the rate warms up, holds, and falls over the last 60 %."""
        fraction = self.fraction()
        decay = 1.0 if fraction < 0.4 else 0.5 + 0.5 * math.cos(math.pi * (fraction - 0.4) / 0.6)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * min(1.0, self.step / 200) * max(0.01, decay)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.ema.update(self.step)

    def record(self, **values: float) -> None:
        """Print a row and add it to the log, with the step and the minutes of training so far."""
        row = {"step": self.step, "minutes": round(self.elapsed() / 60, 3)}
        row |= {key: round(value, 5) for key, value in values.items()}
        self.rows.append(row)
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 on a GPU; on the CPU nothing is cast."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


# ------------------------------------------------------------------------------------------- the autoencoder


Coder = Callable[[AutoencoderKLWan, torch.Tensor], torch.Tensor]


def vae_loss(
    vae: AutoencoderKLWan, rendered: clips.Rendered, generator: torch.Generator, encode: Coder, decode: Coder
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """L1 + 2 L2, the shape and its rim counted five times, plus 1e-4 KL.

    encode, decode: the functions of that name, compiled or not.
    """
    with autocast(rendered.video.device):
        posterior = encode(vae, rendered.video).float()
        mean, log_variance = posterior.chunk(2, dim=1)
        log_variance = log_variance.clamp(-20, 2)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        rebuilt = decode(vae, mean + noise * (0.5 * log_variance).exp()).float()
    weight = 1 + 4 * (rendered.distance < 3).float()
    error = (rebuilt - rendered.video).abs()
    pixel = ((error + 2 * error.square()) * weight).mean() / weight.mean()
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    return pixel + 1e-4 * kl, {"pixel": pixel.detach(), "kl": kl.detach()}


@torch.no_grad()
def latent_statistics(
    vae: AutoencoderKLWan, pool: torch.Tensor, generator: torch.Generator, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Per-channel mean and standard deviation, (16,) each, of the latents of `count` training clips."""
    chunks = []
    for _ in range(math.ceil(count / 16)):
        video = clips.render(clips.sample_specs(16, pool, generator), generator).video
        chunks.append(encode(vae, video)[:, :LATENT_CHANNELS])
    latents = torch.cat(chunks)
    return latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4))


@torch.no_grad()
def vae_score(vae: AutoencoderKLWan, reference: torch.Tensor) -> float:
    """PSNR (dB) of full-precision reconstructions, posterior mean. reference: (batch, 3, frames, H, W)."""
    rebuilt = [
        decode(vae, encode(vae, chunk)[:, :LATENT_CHANNELS]).clamp(-1, 1) for chunk in reference.split(8)
    ]
    return psnr(torch.cat(rebuilt), reference)


def channels_last(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """Lay the convolution weights out channels last, which makes bfloat16 convolutions a quarter faster."""
    for module in vae.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.to(memory_format=torch.channels_last_3d)
        elif isinstance(module, torch.nn.Conv2d):
            module.to(memory_format=torch.channels_last)
    return vae


def train_vae(arguments: argparse.Namespace) -> None:
    """Train the autoencoder: crops for the first half of the schedule, whole frames for the second."""
    device = torch.device(arguments.device)
    torch.manual_seed(arguments.seed)
    vae = channels_last(build_vae().to(device))
    run = Run(arguments.run, "vae")
    trainer = Trainer(
        vae,
        run,
        rate=1.5e-3,
        betas=(0.9, 0.95),
        decay=0.998,
        minutes=arguments.minutes,
        total_minutes=arguments.total_minutes,
        seed=arguments.seed,
    )
    generator = torch.Generator(device).manual_seed(trainer.stream)
    pool = clips.all_specs(held_out=False).to(device)
    held_out = clips.held_out_benchmark(arguments.evaluate)
    reference = clips.render(held_out, torch.Generator().manual_seed(0)).video.to(device)
    coders: tuple[Coder, Coder] = (encode, decode)
    if arguments.compile:
        coders = torch.compile(encode, dynamic=False), torch.compile(decode, dynamic=False)

    for step in trainer.steps():
        whole = trainer.fraction() >= 0.5
        batch, window = (arguments.batch, clips.FRAME_SIZE) if whole else (4 * arguments.batch, 64)
        rendered = clips.render(clips.sample_specs(batch, pool, generator), generator, window=window)
        loss, parts = vae_loss(vae, rendered, generator, *coders)
        trainer.update(loss)
        if step % arguments.every == 0:
            trainer.ema.swap()
            score = vae_score(vae, reference)
            trainer.ema.swap()
            values = {key: value.item() for key, value in parts.items()}
            trainer.record(loss=loss.item(), psnr=score, **values)
            trainer.save()
    trainer.save()

    trainer.ema.swap()
    mean, std = latent_statistics(vae, pool, generator, arguments.statistics)
    print(f"held-out PSNR {vae_score(vae, reference):.2f} dB", flush=True)
    print(f"latent std {std.min():.2f} to {std.max():.2f}", flush=True)
    weights = {f"vae.{key}": value.contiguous().cpu() for key, value in vae.state_dict().items()}
    save_file(weights | {"latents_mean": mean.cpu(), "latents_std": std.cpu()}, run.weights)


def load_vae(path: Path) -> AutoencoderKLWan:
    """The trained autoencoder with its latent statistics in its configuration."""
    weights = load_file(path)
    vae = build_vae(weights.pop("latents_mean"), weights.pop("latents_std"))
    vae.load_state_dict({key.removeprefix("vae."): value for key, value in weights.items()})
    return vae.eval()


# --------------------------------------------------------------------------------- the diffusion transformer


class LatentPool:
    """Normalised latents of rendered training clips on the device, gradually replaced as training runs."""

    def __init__(self, vae: AutoencoderKLWan, size: int, chunk: int, generator: torch.Generator) -> None:
        self.vae, self.chunk, self.generator = vae, chunk, generator
        self.specs_to_draw = clips.all_specs(held_out=False)
        device = generator.device
        self.mean = torch.tensor(vae.config.latents_mean, device=device).view(1, -1, 1, 1, 1)
        self.std = torch.tensor(vae.config.latents_std, device=device).view(1, -1, 1, 1, 1)
        frames, side = (clips.NUM_FRAMES - 1) // 4 + 1, clips.FRAME_SIZE // 8
        self.latents = torch.empty(size, LATENT_CHANNELS, frames, side, side, device=device)
        self.specs = torch.empty(size, len(clips.ATTRIBUTES), dtype=torch.long, device=device)
        self.next = 0
        for _ in range(size // chunk):
            self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Replace the oldest chunk by newly rendered clips."""
        specs = clips.sample_specs(self.chunk, self.specs_to_draw, self.generator)
        with autocast(specs.device):
            latents = encode(self.vae, clips.render(specs, self.generator).video)[:, :LATENT_CHANNELS]
        rows = slice(self.next, self.next + self.chunk)
        self.latents[rows] = (latents.float() - self.mean) / self.std
        self.specs[rows] = specs
        self.next = (self.next + self.chunk) % len(self.specs)

    def draw(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A random batch: latents (count, 16, 5, 16, 16) and their specifications (count, 6)."""
        device = self.generator.device
        rows = torch.randint(len(self.specs), (count,), generator=self.generator, device=device)
        return self.latents[rows], self.specs[rows]


class CaptionTable:
    """Token ids of every caption that the clips can have, on the device, so that batches need no tokenizing.

    Every specification has eight captions: with and without its size, its speed and its ground. A tenth of
    the drawn captions is empty, for classifier-free guidance.
    """

    def __init__(self, device: torch.device) -> None:
        self.tokenizer = build_tokenizer()
        spoken = list(itertools.product((True, False), repeat=3))
        every_spec = itertools.product(*(range(len(values)) for values in clips.ATTRIBUTES.values()))
        captions = [
            clips.caption(spec, size=size, speed=speed, ground=ground)
            for spec in every_spec
            for size, speed, ground in spoken
        ]
        self.table = self.tokens(captions).view(-1, len(spoken), TEXT_LENGTH).to(device)
        self.empty = self.tokens([""]).to(device)
        # Size and speed are spoken 90 % of the time each, the ground half of the time.
        weights = [(0.9 if size else 0.1) * (0.9 if speed else 0.1) * 0.5 for size, speed, _ in spoken]
        self.weights = torch.tensor(weights, device=device)
        counts = [len(values) for values in clips.ATTRIBUTES.values()]
        self.strides = torch.tensor([math.prod(counts[i + 1 :]) for i in range(len(counts))], device=device)

    def tokens(self, captions: list[str]) -> torch.Tensor:
        """(batch, TEXT_LENGTH) ids, padded, on the CPU."""
        encoded = self.tokenizer(captions, padding="max_length", max_length=TEXT_LENGTH, truncation=True)
        return torch.tensor(encoded.input_ids)

    def draw(self, specs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """A random caption of each specification. specs: (batch, 6). Returns (batch, TEXT_LENGTH) ids."""
        rows = (specs * self.strides).sum(1)
        variants = torch.multinomial(self.weights, len(specs), replacement=True, generator=generator)
        silent = torch.rand(len(specs), 1, generator=generator, device=specs.device) < 0.1
        return torch.where(silent, self.empty, self.table[rows, variants])


def sample_sigmas(count: int, generator: torch.Generator) -> torch.Tensor:
    """Noise levels in 0..1: logit-normal, shifted towards noise like the sampler's, 10 % uniform. (count,)"""
    device = generator.device
    sigma = torch.randn(count, generator=generator, device=device).sigmoid()
    sigma = FLOW_SHIFT * sigma / (1 + (FLOW_SHIFT - 1) * sigma)
    uniform = torch.rand(count, generator=generator, device=device)
    return torch.where(torch.rand(count, generator=generator, device=device) < 0.1, uniform, sigma)


def flow_loss(
    denoiser: Denoiser,
    transformer: Callable[..., Any],
    latents: torch.Tensor,
    tokens: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """Flow matching: the velocity `noise - latents` is predicted from their mixture at a random noise level.

    transformer: the denoiser's own, compiled or not.
    """
    sigma = sample_sigmas(len(latents), generator)
    noise = torch.randn(latents.shape, generator=generator, device=latents.device)
    level = sigma.view(-1, 1, 1, 1, 1)
    noisy = (1 - level) * latents + level * noise
    with autocast(latents.device):
        velocity = transformer(noisy, sigma * 1000, denoiser.embed(tokens), return_dict=False)[0]
    return (velocity.float() - (noise - latents)).square().mean()


@torch.no_grad()
def generate(
    denoiser: Denoiser, vae: AutoencoderKLWan, tokens: torch.Tensor, empty: torch.Tensor, seed: int
) -> torch.Tensor:
    """What `WanPipeline` computes with the shipped settings, batched for evaluation during training.

    tokens, empty: (batch, TEXT_LENGTH). Returns (batch, 3, frames, height, width) in [0, 1].
    """
    scheduler = build_scheduler()
    scheduler.set_timesteps(int(GENERATION["num_inference_steps"]), device=tokens.device)
    frames, side = (clips.NUM_FRAMES - 1) // 4 + 1, clips.FRAME_SIZE // 8
    generator = torch.Generator(tokens.device).manual_seed(seed)
    shape = (len(tokens), LATENT_CHANNELS, frames, side, side)
    latents = torch.randn(shape, generator=generator, device=tokens.device)
    both = torch.cat([tokens, empty])
    for timestep in scheduler.timesteps:
        with autocast(tokens.device):
            velocity = denoiser(torch.cat([latents, latents]), timestep.expand(len(both)), both).float()
        conditional, unconditional = velocity.chunk(2)
        velocity = unconditional + GENERATION["guidance_scale"] * (conditional - unconditional)
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
    mean = torch.tensor(vae.config.latents_mean, device=tokens.device).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std, device=tokens.device).view(1, -1, 1, 1, 1)
    with autocast(tokens.device):
        video = [decode(vae, chunk).float() for chunk in (latents * std + mean).split(16)]
    return (torch.cat(video).clamp(-1, 1) + 1) / 2


def train_dit(arguments: argparse.Namespace) -> None:
    """Train the diffusion transformer and the text encoder on latents of rendered clips."""
    device = torch.device(arguments.device)
    torch.manual_seed(arguments.seed)
    denoiser = Denoiser().to(device)
    run = Run(arguments.run, "dit")
    trainer = Trainer(
        denoiser,
        run,
        rate=1e-3,
        betas=(0.9, 0.98),
        decay=0.999,
        minutes=arguments.minutes,
        total_minutes=arguments.total_minutes,
        seed=arguments.seed,
    )
    vae = load_vae(Run(arguments.run, "vae").weights).to(device)
    generator = torch.Generator(device).manual_seed(trainer.stream)
    captions = CaptionTable(device)
    held_out = clips.held_out_benchmark(arguments.evaluate)
    prompts = captions.tokens([clips.caption(spec) for spec in held_out]).to(device)
    empty = captions.empty.expand(len(held_out), -1)
    pool = LatentPool(vae, arguments.pool, min(arguments.pool, 64), generator)
    print(f"pool of {arguments.pool} clips encoded in {trainer.elapsed() - trainer.spent:.0f} s", flush=True)
    transformer = torch.compile(denoiser.transformer) if arguments.compile else denoiser.transformer

    for step in trainer.steps():
        latents, specs = pool.draw(arguments.batch)
        loss = flow_loss(denoiser, transformer, latents, captions.draw(specs, generator), generator)
        trainer.update(loss)
        if step % 40 == 0:
            pool.refresh()
        if step % arguments.log_every == 0:
            trainer.record(loss=loss.item())
        if step % arguments.every == 0:
            trainer.ema.swap()
            video = generate(denoiser, vae, prompts, empty, seed=0)
            trainer.ema.swap()
            shares = agreement([m for chunk in video.split(16) for m in measure(chunk)], held_out)
            trainer.record(loss=loss.item(), **asdict(shares))
            trainer.save()
    trainer.save()
    trainer.ema.swap()
    weights = {key: value.contiguous().cpu() for key, value in denoiser.state_dict().items()}
    weights.pop("text_encoder.encoder.embed_tokens.weight", None)  # the same tensor as text_encoder.shared
    save_file(weights, run.weights)


# ------------------------------------------------------------------------------------ the shipped checkpoint


def load_denoiser(path: Path) -> Denoiser:
    """The trained text encoder and transformer."""
    denoiser = Denoiser()
    weights = load_file(path)
    weights["text_encoder.encoder.embed_tokens.weight"] = weights["text_encoder.shared.weight"]
    denoiser.load_state_dict(weights)
    return denoiser.eval()


def save_checkpoint(denoiser: Denoiser, vae: AutoencoderKLWan, folder: Path) -> None:
    """Write the diffusers folder, float32 safetensors, with `generation.json` beside `model_index.json`."""
    pipe = WanPipeline(
        tokenizer=build_tokenizer(),
        text_encoder=denoiser.text_encoder.float(),
        vae=vae.float(),
        scheduler=build_scheduler(),
        transformer=denoiser.transformer.float(),
    )
    pipe.save_pretrained(folder, safe_serialization=True)
    # transformers 5 names the class TokenizersBackend, which version 4 does not know; both know this name.
    for name, key, value in (
        ("model_index.json", "tokenizer", ["transformers", "PreTrainedTokenizerFast"]),
        ("tokenizer/tokenizer_config.json", "tokenizer_class", "PreTrainedTokenizerFast"),
    ):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}, indent=2) + "\n")
    (folder / "generation.json").write_text(json.dumps(GENERATION, indent=2) + "\n")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"wrote {folder}, {size:,} bytes")


def export(arguments: argparse.Namespace) -> None:
    """Write the trained checkpoint in diffusers format."""
    denoiser = load_denoiser(Run(arguments.run, "dit").weights)
    save_checkpoint(denoiser, load_vae(Run(arguments.run, "vae").weights), arguments.output)


def initialise(arguments: argparse.Namespace) -> None:
    """Write an untrained checkpoint of the final configuration, for developing against."""
    torch.manual_seed(arguments.seed)
    vae = build_vae(torch.linspace(-0.8, 0.8, LATENT_CHANNELS), torch.linspace(0.5, 2.0, LATENT_CHANNELS))
    save_checkpoint(Denoiser().eval(), vae.eval(), arguments.output)


def plot(arguments: argparse.Namespace) -> None:
    """Draw the logs of both stages as one picture, and write them as one CSV if asked."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = []
    for stage in ("vae", "dit"):
        with Run(arguments.run, stage).log.open(newline="") as file:
            rows += [{"stage": stage, **row} for row in csv.DictReader(file)]

    def series(stage: str, column: str) -> tuple[list[float], list[float]]:
        chosen = [row for row in rows if row["stage"] == stage and row.get(column)]
        return [float(row["minutes"]) for row in chosen], [float(row[column]) for row in chosen]

    figure, axes = plt.subplots(2, 2, figsize=(10, 6), layout="constrained", dpi=90)
    for (axis, stage, columns, title), log_scale in zip(
        (
            (axes[0, 0], "vae", ["loss"], "autoencoder: loss"),
            (axes[0, 1], "vae", ["psnr"], "autoencoder: PSNR on held-out clips (dB)"),
            (axes[1, 0], "dit", ["loss"], "transformer: flow-matching loss"),
            (axes[1, 1], "dit", ["colour", "shape", "direction"], "held-out captions followed (share)"),
        ),
        (True, False, True, False),
        strict=True,
    ):
        for column in columns:
            axis.plot(*series(stage, column), label=column, linewidth=1.2)
        axis.set(title=title, xlabel="minutes of training")
        axis.grid(alpha=0.3)
        if log_scale:
            axis.set_yscale("log")
        if len(columns) > 1:
            axis.legend()
    figure.savefig(arguments.picture)
    columns = list(dict.fromkeys(itertools.chain.from_iterable(rows)))
    with arguments.csv.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def parse_arguments() -> argparse.Namespace:
    """The command line; the chosen stage is its `function`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)

    def training(name: str, function: Any, batch: int, every: int, evaluate: int) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=function.__doc__)
        command.set_defaults(function=function)
        command.add_argument("--run", type=Path, required=True, help="folder of states, weights and logs")
        command.add_argument("--minutes", type=float, required=True, help="minutes to run now")
        command.add_argument(
            "--total-minutes", type=float, required=True, help="length of the whole schedule"
        )
        command.add_argument("--batch", type=int, default=batch, help="clips a step")
        command.add_argument("--every", type=int, default=every, help="steps between evaluations")
        command.add_argument("--evaluate", type=int, default=evaluate, help="held-out clips in an evaluation")
        command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--compile", action="store_true", help="use torch.compile")
        return command

    vae = training("vae", train_vae, batch=8, every=500, evaluate=24)
    vae.add_argument("--statistics", type=int, default=1024, help="clips for the latent statistics")
    dit = training("dit", train_dit, batch=256, every=2000, evaluate=96)
    dit.add_argument("--pool", type=int, default=12288, help="encoded clips held ready")
    dit.add_argument("--log-every", type=int, default=50, help="steps between log rows")

    command = commands.add_parser("export", help=export.__doc__)
    command.set_defaults(function=export)
    command.add_argument("--run", type=Path, required=True)
    command.add_argument("--output", type=Path, required=True)
    command = commands.add_parser("init", help=initialise.__doc__)
    command.set_defaults(function=initialise)
    command.add_argument("--output", type=Path, required=True)
    command.add_argument("--seed", type=int, default=0)
    command = commands.add_parser("plot", help=plot.__doc__)
    command.set_defaults(function=plot)
    command.add_argument("--run", type=Path, required=True)
    command.add_argument("--picture", type=Path, required=True)
    command.add_argument("--csv", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    """Run the chosen stage."""
    arguments = parse_arguments()
    # Shapes repeat; matrix products of what autocast leaves in float32 may use TF32.
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    arguments.function(arguments)


if __name__ == "__main__":
    main()

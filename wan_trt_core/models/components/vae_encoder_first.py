"""The VAE encoder's first step: one frame to one latent frame, with no past."""

from __future__ import annotations

from wan_trt_core.models.vae_encoder import VaeEncoder


class VaeEncoderFirst(VaeEncoder):
    """Encodes a video's first frame to its first latent frame and leaves the caches for the next."""

    name = "vae_encoder_first"
    first = True


COMPONENT = VaeEncoderFirst()

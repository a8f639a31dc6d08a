"""The VAE decoder's first step: one latent frame to one frame, with no past."""

from __future__ import annotations

from wan_trt_core.models.vae_decoder import VaeDecoder


class VaeDecoderFirst(VaeDecoder):
    """Decodes a video's first latent frame to its first frame and leaves the caches for the next."""

    name = "vae_decoder_first"
    first = True


COMPONENT = VaeDecoderFirst()

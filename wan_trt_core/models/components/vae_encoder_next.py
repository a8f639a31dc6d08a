"""The VAE encoder's every other step: four frames to one latent frame, with the caches of the step before."""

from __future__ import annotations

from wan_trt_core.models.vae_encoder import VaeEncoder


class VaeEncoderNext(VaeEncoder):
    """Encodes any four frames after the first to one latent frame, from the caches it is given to new ones."""

    name = "vae_encoder_next"
    first = False


COMPONENT = VaeEncoderNext()

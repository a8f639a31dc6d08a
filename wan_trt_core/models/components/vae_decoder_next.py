"""The VAE decoder's every other step: one latent frame to four frames, with the caches of the step before."""

from __future__ import annotations

from wan_trt_core.models.vae_decoder import VaeDecoder


class VaeDecoderNext(VaeDecoder):
    """Decodes any but the first latent frame to four frames, from the caches it is given to new ones."""

    name = "vae_decoder_next"
    first = False


COMPONENT = VaeDecoderNext()

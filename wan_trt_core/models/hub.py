"""Models by their id on the Hugging Face hub: the only place that downloads anything."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from wan_trt_core.causes import disk_full
from wan_trt_core.config import HUB_ID
from wan_trt_core.models.checkpoint import INDEX, Checkpoint, CheckpointError, check_index

logger = logging.getLogger(__name__)


def files_of(parts: Iterable[str]) -> list[str]:
    """What is downloaded of a model: all that a checkpoint with these parts reads, and nothing that runs code when it
    is loaded."""
    return [
        INDEX,
        "generation.json",
        "scheduler/*.json",
        "image_processor/*.json",
        *(f"tokenizer/*.{suffix}" for suffix in ("json", "txt", "model")),
        *(f"{part}/*.{suffix}" for part in parts for suffix in ("json", "safetensors")),
    ]


def open_checkpoint(place: Path | str, *, download: bool = True, weights: bool = True) -> Checkpoint:
    """The checkpoint in a folder, or of a model of the hub where no folder has that name.

    Of a model of the hub what its client's cache holds is taken as it is, without a request. Only where the cache does
    not hold all of it, it is downloaded into the cache.

    Args:
        place: a folder, or ``owner/name`` or ``owner/name@revision`` (branch, tag or commit).
        download: whether a model that is not in the cache may be downloaded.
        weights: of a model of the hub; without them only its configurations are looked for, some kilobytes.

    Raises:
        CheckpointError: when what is found is no usable checkpoint, or the model is not in the cache and the client is
            offline (``HF_HUB_OFFLINE``), may not download, or fails to.
        OSError: when the disk is full.
    """
    named = HUB_ID.fullmatch(str(place))
    if named is None or Path(place).is_dir():
        return Checkpoint.open(place)

    from huggingface_hub import constants, is_offline_mode, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    snapshot = partial(snapshot_download, named["repo"], revision=named["revision"])
    revision = f" --revision {named['revision']}" if named["revision"] else ""
    remedy = (
        f"run `hf download {named['repo']}{revision}` where there is a network, or give the folder of a copy"
        " (--wan-checkpoint FOLDER)"
    )
    try:
        return _opened(partial(snapshot, local_files_only=True), weights)
    except (LocalEntryNotFoundError, HFValidationError, CheckpointError) as error:
        if is_offline_mode() or not download:
            cause = "" if isinstance(error, LocalEntryNotFoundError) else f" ({error})"
            offline = (
                "HF_HUB_OFFLINE forbids the download" if is_offline_mode() else "the first use downloads it"
            )
            raise CheckpointError(
                f"{place}: no such folder, and no whole copy in the hub's cache {constants.HF_HUB_CACHE}{cause};"
                f" {offline}; {remedy}"
            ) from error
    if weights:
        logger.info("downloading %s from %s into %s", place, constants.ENDPOINT, constants.HF_HUB_CACHE)
    try:
        return _opened(snapshot, weights)
    except CheckpointError:
        raise
    except Exception as error:  # of the client, or of whichever HTTP library it uses
        if isinstance(error, OSError) and disk_full(error):
            raise
        raise CheckpointError(
            f"{place}: no such folder, and not to be had from {constants.ENDPOINT} ({type(error).__name__}:"
            f" {' '.join(str(error).split())}); {remedy}"
        ) from error


def _opened(snapshot: Callable[..., str], weights: bool) -> Checkpoint:
    """A checkpoint of the hub, its index first: that says which parts there are, before the gigabytes."""
    parts = check_index(Path(snapshot(allow_patterns=INDEX)))
    if not weights:
        return Checkpoint.described(snapshot(allow_patterns=[f"{part}/config.json" for part in parts]))
    return Checkpoint.open(snapshot(allow_patterns=files_of(parts)))

"""The engine cache: what is found, what is never loaded, and what interruptions leave behind."""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wan_trt_core import engine_cache, hashing
from wan_trt_core.distributions import distribution_versions
from wan_trt_core.engine_cache import MANIFEST, CacheError, EngineCache

IDENTITY = {"component": "dit", "precision": "fp16", "device": "cpu A", "versions": {}}
CONTENT = b"an engine's bytes " * 100
SPAWN = multiprocessing.get_context("spawn")


def make(folder: Path) -> dict[str, Any]:
    (folder / "data").mkdir()
    (folder / "dit_fp16.onnx").write_bytes(CONTENT)
    (folder / "data" / "weights").write_bytes(CONTENT[::-1])
    return {"build_seconds": 1.5}


def never(folder: Path) -> dict[str, Any]:
    raise AssertionError("it is in the cache and must not be made again")


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "cache", lock_timeout=10)


def leftovers(cache: EngineCache) -> list[Path]:
    return list((cache.root / "tmp").glob("*"))


def test_what_was_made_is_found(cache: EngineCache) -> None:
    made = cache.get_or_make("engines", IDENTITY, make)
    assert made.made
    found = cache.get_or_make("engines", dict(reversed(IDENTITY.items())), never)
    assert not found.made
    assert (found.folder / "dit_fp16.onnx").read_bytes() == CONTENT
    assert found.manifest == made.manifest
    assert found.facts["build_seconds"] == 1.5
    assert found.facts["seconds"] >= 0
    assert set(found.manifest["files"]) == {"dit_fp16.onnx", "data/weights"}
    assert found.manifest["identity"] == IDENTITY
    assert leftovers(cache) == []


def test_every_piece_of_a_file_counts_and_their_order(
    cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "PIECE", 64)
    file = cache.get_or_make("engines", IDENTITY, make).folder / "dit_fp16.onnx"
    assert [entry.problem for entry in cache.verify()] == [None]
    for damaged in (CONTENT[:-1] + b"?", CONTENT[64:128] + CONTENT[:64] + CONTENT[128:]):
        file.write_bytes(damaged)
        (entry,) = cache.verify()
        assert entry.problem is not None and "dit_fp16.onnx differs" in entry.problem


def test_facts_are_read_without_handing_out_the_entry(cache: EngineCache) -> None:
    entry = cache.get_or_make("engines", IDENTITY, make)
    found = cache.facts("engines", IDENTITY)
    assert found is not None and found["build_seconds"] == 1.5
    assert cache.facts("engines", IDENTITY | {"precision": "fp32"}) is None
    (entry.folder / MANIFEST).write_text("{}")
    assert cache.facts("engines", IDENTITY) is None


@pytest.mark.parametrize(
    "change", [{"device": "cpu B"}, {"versions": {"onnxruntime": "2"}}, {"precision": "fp32"}]
)
def test_another_identity_is_another_entry(cache: EngineCache, change: dict[str, Any]) -> None:
    first = cache.get_or_make("engines", IDENTITY, make)
    second = cache.get_or_make("engines", IDENTITY | change, make)
    assert second.made
    assert second.folder != first.folder


def test_kinds_are_apart(cache: EngineCache) -> None:
    cache.get_or_make("engines", IDENTITY, make)
    assert cache.get_or_make("onnx", IDENTITY, make).made


def test_an_identity_must_be_json(cache: EngineCache) -> None:
    with pytest.raises(TypeError):
        cache.get_or_make("engines", {"path": Path("x")}, make)
    with pytest.raises(ValueError, match="not JSON compliant"):
        cache.get_or_make("engines", {"tolerance": float("nan")}, make)


def _flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _edit_manifest(folder: Path, rehash: bool = False, **changes: Any) -> None:
    path = folder / MANIFEST
    manifest = json.loads(path.read_text()) | changes
    if rehash:
        manifest["sha256"] = engine_cache._manifest_hash(manifest)
    path.write_text(json.dumps(manifest))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped byte": (lambda folder: _flip_byte(folder / "dit_fp16.onnx"), "corrupted: dit_fp16.onnx differs"),
    "flipped byte in a subfolder": (
        lambda folder: _flip_byte(folder / "data" / "weights"),
        "data/weights differs",
    ),
    "truncated": (lambda folder: os.truncate(folder / "dit_fp16.onnx", 10), "dit_fp16.onnx has 10 bytes"),
    "missing": (lambda folder: (folder / "dit_fp16.onnx").unlink(), "dit_fp16.onnx is missing"),
    "extra": (lambda folder: (folder / "more.so").write_bytes(b"x"), "more.so is not in its manifest"),
    "no manifest": (lambda folder: (folder / MANIFEST).unlink(), "manifest.json is missing"),
    "no JSON": (lambda folder: (folder / MANIFEST).write_text("{"), "not readable as JSON"),
    "no text": (lambda folder: (folder / MANIFEST).write_bytes(b"\xff\x00"), "not readable as JSON"),
    "a JSON list": (lambda folder: (folder / MANIFEST).write_text("[]"), "no JSON object"),
    "an edited fact": (lambda folder: _edit_manifest(folder, facts={"x": 1}), "differs from its own hash"),
    "a manifest without its hash": (
        lambda folder: (folder / MANIFEST).write_text(f'{{"schema_version": {engine_cache.SCHEMA_VERSION}}}'),
        "differs from its own hash",
    ),
    "another schema": (lambda folder: _edit_manifest(folder, schema_version=99), "foreign: .* schema 99"),
    "another device": (
        lambda folder: _edit_manifest(folder, rehash=True, identity=IDENTITY | {"device": "cpu B"}),
        "foreign: its device is 'cpu B', not 'cpu A'",
    ),
    "another version": (
        lambda folder: _edit_manifest(
            folder, rehash=True, identity=IDENTITY | {"versions": {"tensorrt": "9"}}
        ),
        "foreign: its versions is .*'tensorrt': '9'",
    ),
    "another key": (
        lambda folder: _edit_manifest(folder, rehash=True, key="0" * 64),
        "foreign: .* engines/000",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_bad_entry_is_named_and_made_again(
    cache: EngineCache, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    harm, message = DAMAGE[damage]
    folder = cache.get_or_make("engines", IDENTITY, make).folder
    harm(folder)
    (listed,) = cache.verify()
    assert listed.problem is not None
    with caplog.at_level(logging.WARNING, logger=engine_cache.__name__):
        entry = cache.get_or_make("engines", IDENTITY, make)
    assert entry.made
    assert (entry.folder / "dit_fp16.onnx").read_bytes() == CONTENT
    (record,) = caplog.records
    assert str(folder) in record.getMessage()
    assert re.search(message, record.getMessage()), record.getMessage()
    assert leftovers(cache) == []
    assert cache.verify()[0].problem is None


def test_an_entry_of_another_key_is_not_loaded(cache: EngineCache, caplog: pytest.LogCaptureFixture) -> None:
    theirs = IDENTITY | {"device": "cpu B"}
    foreign = cache.get_or_make("engines", theirs, make).folder
    ours = cache.get_or_make("engines", IDENTITY, make).folder
    shutil.rmtree(ours)
    shutil.copytree(foreign, ours)
    assert cache.get_or_make("engines", IDENTITY, make).made
    assert "foreign: its device is 'cpu B', not 'cpu A'" in caplog.text


def test_a_link_to_nowhere_is_no_file(cache: EngineCache, tmp_path: Path) -> None:
    folder = cache.get_or_make("engines", IDENTITY, make).folder
    (folder / "dit_fp16.onnx").rename(tmp_path / "elsewhere")
    (folder / "dit_fp16.onnx").symlink_to(tmp_path / "nowhere")
    assert cache.get_or_make("engines", IDENTITY, make).made


def test_ctrl_c_leaves_nothing_and_the_cache_usable(cache: EngineCache) -> None:
    def interrupted(folder: Path) -> dict[str, Any]:
        make(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.get_or_make("engines", IDENTITY, interrupted)
    assert leftovers(cache) == []
    assert cache.list() == ()
    assert cache.get_or_make("engines", IDENTITY, make).made


def test_a_full_disk_says_so_and_leaves_nothing(cache: EngineCache) -> None:
    def full(folder: Path) -> dict[str, Any]:
        make(folder)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CacheError, match=r"the disk is full: making the engine dit fp16 in .*--wan-cache"):
        cache.get_or_make("engines", IDENTITY, full)
    assert leftovers(cache) == []
    assert cache.get_or_make("engines", IDENTITY, make).made


def test_a_full_disk_is_seen_through_a_library_that_hides_it(
    cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opaque(folder: Path) -> dict[str, Any]:
        raise RuntimeError("Protobuf serialization failed.")

    with pytest.raises(RuntimeError, match=r"^Protobuf serialization failed\.$"):
        cache.get_or_make("engines", IDENTITY, opaque)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 4096))
    with pytest.raises(CacheError, match=r"the disk is full.*Protobuf serialization failed"):
        cache.get_or_make("engines", IDENTITY, opaque)


def test_a_full_disk_while_the_manifest_is_written(
    cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, *args: object, **kwargs: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(CacheError, match="the disk is full"):
            cache.get_or_make("engines", IDENTITY, make)
    assert leftovers(cache) == []
    assert cache.get_or_make("engines", IDENTITY, make).made


def test_any_other_failure_passes_through_and_leaves_nothing(cache: EngineCache) -> None:
    def broken(folder: Path) -> dict[str, Any]:
        make(folder)
        raise LookupError("no such operator")

    with pytest.raises(LookupError, match="no such operator"):
        cache.get_or_make("engines", IDENTITY, broken)
    assert leftovers(cache) == []


def test_making_one_entry_may_need_another(cache: EngineCache) -> None:
    def build(folder: Path) -> dict[str, Any]:
        return {"onnx": str(cache.get_or_make("onnx", IDENTITY, make).folder), **make(folder)}

    assert cache.get_or_make("engines", IDENTITY, build).made
    assert len(cache.list()) == 2


def test_a_full_disk_is_reported_once_where_entries_nest(cache: EngineCache) -> None:
    def full(folder: Path) -> dict[str, Any]:
        raise OSError(errno.ENOSPC, "No space left on device")

    def build(folder: Path) -> dict[str, Any]:
        return dict(cache.get_or_make("onnx", IDENTITY, full).facts)

    with pytest.raises(CacheError, match="making the ONNX model dit fp16") as caught:
        cache.get_or_make("engines", IDENTITY, build)
    assert str(caught.value).count("the disk is full") == 1


def test_a_full_disk_is_reported_once_where_the_exporter_says_so_too(cache: EngineCache) -> None:
    def full(folder: Path) -> dict[str, Any]:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "dit.onnx")
        except OSError as error:
            raise ValueError("the disk is full: free some space") from error

    with pytest.raises(CacheError, match=r"No space left on device: 'dit\.onnx'") as caught:
        cache.get_or_make("onnx", IDENTITY, full)
    assert str(caught.value).count("the disk is full") == 1


def _build_once(root: Path, log: Path, start: Any) -> None:
    def slowly(folder: Path) -> dict[str, Any]:
        with log.open("a") as stream:
            stream.write(f"{os.getpid()}\n")
        time.sleep(0.5)
        return make(folder)

    start.wait(30)
    EngineCache(root, 60).get_or_make("engines", IDENTITY, slowly)


def test_of_two_processes_exactly_one_builds(cache: EngineCache, tmp_path: Path) -> None:
    log, start = tmp_path / "builds", SPAWN.Barrier(2)
    workers = [SPAWN.Process(target=_build_once, args=(cache.root, log, start)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert len(log.read_text().splitlines()) == 1
    assert cache.get_or_make("engines", IDENTITY, never).folder.is_dir()


def _hang(root: Path, started: Any) -> None:
    def hang(folder: Path) -> dict[str, Any]:
        make(folder)
        started.set()
        time.sleep(60)
        return {}

    EngineCache(root, 60).get_or_make("engines", IDENTITY, hang)


def test_a_lock_that_is_not_released_names_its_file_and_holder(cache: EngineCache) -> None:
    started = SPAWN.Event()
    worker = SPAWN.Process(target=_hang, args=(cache.root, started))
    worker.start()
    try:
        assert started.wait(30)
        with pytest.raises(
            CacheError, match=rf"engines-.*\.lock: .*after 0\.2 s, held by process {worker.pid} on"
        ):
            EngineCache(cache.root, lock_timeout=0.2).get_or_make("engines", IDENTITY, never)

        # what is in the making belongs to a living process: neither another build nor prune may touch it
        cache.get_or_make("engines", IDENTITY | {"component": "other"}, make)
        pruned = cache.prune(all=True)
        assert (len(pruned.removed), pruned.stale) == (1, 0)
        assert len(leftovers(cache)) == 1
    finally:
        worker.kill()
        worker.join(30)

    # killed: its lock is gone with it, its half-written folder is stale, and whoever comes next removes it
    cache.get_or_make("engines", IDENTITY | {"component": "other"}, make)
    assert leftovers(cache) == []
    assert cache.get_or_make("engines", IDENTITY, make).made


def test_stale_leftovers_of_the_same_entry_are_removed(cache: EngineCache) -> None:
    folder = cache.get_or_make("engines", IDENTITY, make).folder
    stale = cache.root / "tmp" / f"engines-{folder.name}"
    shutil.move(folder, stale)
    (stale / "half written").write_bytes(b"")
    entry = cache.get_or_make("engines", IDENTITY, make)
    assert not (entry.folder / "half written").exists()
    assert leftovers(cache) == []


def test_prune_removes_what_interrupted_builds_left(cache: EngineCache) -> None:
    stale = cache.root / "tmp" / "engines-abc"
    stale.mkdir(parents=True)
    (stale / "part").write_bytes(bytes(1000))
    pruned = cache.prune()
    assert (pruned.stale, pruned.freed, pruned.removed) == (1, 1000, ())
    assert leftovers(cache) == []


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match=r"file/cache: the cache cannot be written: .*set another folder"):
        EngineCache(tmp_path / "file" / "cache").get_or_make("engines", IDENTITY, make)


def _three(cache: EngineCache) -> list[str]:
    """Three entries last used 3, 2 and 1 hours ago; the names of their components in that order."""
    names = ["oldest", "middle", "newest"]
    for age, name in zip((3, 2, 1), names, strict=True):
        folder = cache.get_or_make("engines", IDENTITY | {"component": name}, make).folder
        then = time.time() - age * 3600
        os.utime(folder / MANIFEST, (then, then))
    return names


def _components(entries: tuple[engine_cache.Listed, ...]) -> list[str]:
    return [entry.identity["component"] for entry in entries]


def test_an_empty_cache_lists_nothing(cache: EngineCache) -> None:
    assert cache.list() == cache.verify() == ()
    assert cache.prune(all=True).removed == ()


def test_list_is_ordered_by_last_use(cache: EngineCache) -> None:
    names = _three(cache)
    listed = cache.list()
    assert _components(listed) == names
    assert all(entry.bytes > 2 * len(CONTENT) and entry.problem is None for entry in listed)
    assert listed[0].title == "oldest fp16"
    cache.get_or_make("engines", IDENTITY | {"component": "oldest"}, never)
    assert _components(cache.list()) == ["middle", "newest", "oldest"]


def test_verify_finds_what_list_does_not_look_for(cache: EngineCache) -> None:
    folder = cache.get_or_make("engines", IDENTITY, make).folder
    _flip_byte(folder / "dit_fp16.onnx")
    assert cache.list()[0].problem is None
    (entry,) = cache.verify()
    assert entry.problem == "corrupted: dit_fp16.onnx differs from the hash in its manifest"
    assert entry.identity == IDENTITY
    assert folder.exists()


def test_prune_by_age(cache: EngineCache) -> None:
    _three(cache)
    pruned = cache.prune(older_than=1.5 * 3600)
    assert _components(pruned.removed) == ["oldest", "middle"]
    assert _components(pruned.kept) == _components(cache.list()) == ["newest"]
    assert pruned.freed == sum(entry.bytes for entry in pruned.removed)


def test_prune_by_size_removes_the_least_recently_used(cache: EngineCache) -> None:
    _three(cache)
    size = cache.list()[0].bytes
    pruned = cache.prune(max_bytes=size + size // 2)
    assert _components(pruned.removed) == ["oldest", "middle"]
    assert cache.prune(max_bytes=10 * size).removed == ()


def test_prune_unused_removes_broken_and_outdated(cache: EngineCache) -> None:
    current = IDENTITY | {"versions": distribution_versions("filelock")}
    cache.get_or_make("engines", current, make)
    cache.get_or_make("engines", IDENTITY | {"versions": {"filelock": "0.0.1"}}, make)
    cache.get_or_make("engines", IDENTITY | {"versions": {"gone-package": "1"}}, make)
    broken = cache.get_or_make("engines", IDENTITY | {"component": "broken"}, make).folder
    (broken / MANIFEST).write_text("")
    pruned = cache.prune(unused=True)
    assert len(pruned.removed) == 3
    assert [entry.identity for entry in cache.list()] == [current]


def test_prune_all(cache: EngineCache) -> None:
    _three(cache)
    assert len(cache.prune(all=True).removed) == 3
    assert cache.list() == ()


@pytest.mark.parametrize("rule", [{"older_than": -1.0}, {"max_bytes": -1}])
def test_prune_refuses_negative_numbers(cache: EngineCache, rule: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        cache.prune(**rule)

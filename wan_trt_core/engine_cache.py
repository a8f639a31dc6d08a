"""A content-addressed store of ONNX files and engines, safe between processes.

::

    <root>/onnx/<key>/      manifest.json and the files of one exported model
    <root>/engines/<key>/   manifest.json and the files of one engine
    <root>/locks/           one lock file a key: whoever builds or judges an entry holds it
    <root>/tmp/             entries in the making; whatever lies here without a held lock is stale

The key is the hash of the entry's identity: everything its content depends on. An entry becomes visible by
one rename, when it is complete. It is handed out only after its manifest and the hash of every file were
checked. Who has one and reads it again may ask whether the files are still those (:meth:`Entry.unchanged`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from filelock import FileLock, Timeout

from wan_trt_core.causes import disk_full, first_cause
from wan_trt_core.distributions import distribution_versions
from wan_trt_core.hashing import file_sha256

Kind = Literal["onnx", "engines"]
KINDS: tuple[Kind, ...] = get_args(Kind)

Stamps = Mapping[str, tuple[int, ...]]
"""Of each file of an entry."""

SCHEMA_VERSION = 2
MANIFEST = "manifest.json"

_KEYS = frozenset({"kind", "key", "identity", "versions", "created", "files", "facts", "sha256"})

FULL_BELOW = 1 << 20
"""Free bytes under which a failed build is put down to a full disk, whatever the library in it said."""

logger = logging.getLogger(__name__)


class CacheError(RuntimeError):
    """The cache cannot be used (a lock that is not released, a full disk …); the message says what to do."""


class _BadEntry(Exception):
    """Why an entry must not be loaded."""


@dataclass(frozen=True)
class Entry:
    """A checked entry: its folder, and its manifest.

    Attributes:
        manifest: ``schema_version``, ``kind``, ``key``, ``identity``, ``versions``, ``created``, ``files``
            (name to bytes and :func:`~wan_trt_core.hashing.file_sha256`), ``facts`` (what the maker returned, and
            ``seconds`` it took).
        made: it was made by this very call, rather than found.
        stamps: what the system said of each file before it was checked: its number, bytes and time of writing.
    """

    folder: Path
    manifest: Mapping[str, Any]
    made: bool
    stamps: Stamps

    def unchanged(self) -> bool:
        """Whether its files are those that were checked, as far as the system tells without reading gigabytes."""
        try:
            return _stamps(self.folder, self.stamps) == self.stamps
        except OSError:
            return False

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the maker told of it."""
        facts: Mapping[str, Any] = self.manifest["facts"]
        return facts


@dataclass(frozen=True)
class Listed:
    """One entry on disk, for people.

    Attributes:
        bytes: size of its folder.
        created, used: when it was made and last handed out, seconds since the epoch.
        facts: what the maker told of it.
        problem: why it must not be loaded; None for a sound one. Listing reads manifests only, verifying all.
        outdated: made by versions of packages that are not installed now, so nothing here will ask for it.
    """

    kind: Kind
    key: str
    folder: Path
    bytes: int
    created: float
    used: float
    identity: Mapping[str, Any]
    facts: Mapping[str, Any]
    problem: str | None
    outdated: bool

    @property
    def title(self) -> str:
        """Component and precision, as far as the identity tells them."""
        parts = (self.identity.get(name) for name in ("component", "precision", "profile", "backend"))
        return " ".join(part for part in parts if isinstance(part, str)) or self.key[:12]


@dataclass(frozen=True)
class Pruned:
    """What :meth:`EngineCache.prune` did.

    Attributes:
        removed, kept: entries; ``busy`` those that it was to remove, but another process is using.
        stale: leftovers of interrupted builds that were removed.
        freed: bytes.
    """

    removed: tuple[Listed, ...]
    kept: tuple[Listed, ...]
    busy: tuple[Listed, ...]
    stale: int
    freed: int


class EngineCache:
    """The store under one folder.

    Args:
        root: made when it is first written to.
        lock_timeout: seconds to wait for a process that is making the same entry.
    """

    def __init__(self, root: Path, lock_timeout: float = 1800.0) -> None:
        self.root = root
        self._lock_timeout = lock_timeout

    def get_or_make(
        self, kind: Kind, identity: Mapping[str, Any], make: Callable[[Path], Mapping[str, Any]]
    ) -> Entry:
        """The entry of this identity; when there is none, or none that is sound, it is made.

        Of several processes that ask at once exactly one makes it and the others wait. When ``make`` is
        interrupted or fails nothing is left behind.

        Args:
            identity: everything the content depends on; JSON-serialisable.
            make: writes the files into the empty folder it is given and returns facts for the manifest.

        Raises:
            CacheError: when the lock is not released in time, or the disk is full.
        """
        identity = _as_json(identity)
        key = _key(identity)
        folder = self.root / kind / key
        with self._locked(kind, key, self._lock_timeout):
            if folder.exists():
                try:
                    manifest, stamps = _check(folder, kind, key, identity)
                except _BadEntry as problem:
                    logger.warning("%s: %s; it is not loaded but made again", folder, problem)
                    self._discard(kind, key)
                else:
                    os.utime(folder / MANIFEST)  # its time of last use
                    return Entry(folder, manifest, made=False, stamps=stamps)
            self._remove_stale()
            return self._make(kind, key, identity, make)

    def facts(self, kind: Kind, identity: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """What the maker told of an entry, from its manifest alone; ``None`` where there is no sound one."""
        identity = _as_json(identity)
        key = _key(identity)
        try:
            facts: Mapping[str, Any] = _read_manifest(self.root / kind / key, kind, key, identity)["facts"]
        except _BadEntry:
            return None
        return facts

    def list(self) -> tuple[Listed, ...]:
        """All entries, least recently used first; reads manifests, not the files they speak of."""
        return self._listed(_read_manifest)

    def verify(self) -> tuple[Listed, ...]:
        """As :meth:`list`, with every file's hash checked. Changes nothing."""
        return self._listed(lambda *entry: _check(*entry)[0])

    def prune(
        self,
        *,
        older_than: float | None = None,
        max_bytes: int | None = None,
        unused: bool = False,
        all: bool = False,
    ) -> Pruned:
        """Remove entries by any of the given rules, and what interrupted builds have left.

        Args:
            older_than: those last used more than so many seconds ago.
            max_bytes: the least recently used, until the rest is at most so large.
            unused: those that are broken, or made by versions of packages that are not installed any more.
            all: every one.

        Raises:
            ValueError: for a negative ``older_than`` or ``max_bytes``.
        """
        if (older_than is not None and older_than < 0) or (max_bytes is not None and max_bytes < 0):
            raise ValueError("older_than and max_bytes must not be negative")
        entries = self.list()
        chosen = [entry for entry in entries if all or _falls_under(entry, older_than, unused)]
        if max_bytes is not None:
            chosen += _over_size([entry for entry in entries if entry not in chosen], max_bytes)
        removed, busy = [], []
        for entry in chosen:
            try:
                with self._locked(entry.kind, entry.key, 0.0):
                    self._discard(entry.kind, entry.key)
                    removed.append(entry)
            except CacheError:
                busy.append(entry)
        stale, freed = self._remove_stale()
        kept = tuple(entry for entry in entries if entry not in removed and entry not in busy)
        freed += sum(entry.bytes for entry in removed)
        return Pruned(tuple(removed), kept, tuple(busy), stale, freed)

    def _make(
        self,
        kind: Kind,
        key: str,
        identity: Mapping[str, Any],
        make: Callable[[Path], Mapping[str, Any]],
    ) -> Entry:
        folder = self._temporary(kind, key)
        shutil.rmtree(folder, ignore_errors=True)  # of an interrupted build: this key's lock is ours
        started = time.perf_counter()
        try:
            folder.mkdir(parents=True)
            facts = dict(make(folder))
            facts["seconds"] = time.perf_counter() - started
            manifest = _write_manifest(folder, kind, key, identity, facts)
            final = self.root / kind / key
            final.parent.mkdir(parents=True, exist_ok=True)
            os.replace(folder, final)
        except BaseException as error:
            full = not isinstance(error, CacheError) and _disk_full(error, self.root)
            shutil.rmtree(folder, ignore_errors=True)
            if full:
                raise CacheError(
                    f"the disk is full: making {_title(kind, identity)} in {self.root} failed ({first_cause(error)});"
                    f" {_free(self.root)} bytes are free now. Nothing half-written was left. Free space"
                    " (`wan-trt engines prune --older-than 7d`) or set another folder with --wan-cache"
                ) from error
            if isinstance(error, KeyboardInterrupt):
                logger.warning("interrupted: nothing was left of %s", _title(kind, identity))
            raise
        return Entry(final, manifest, made=True, stamps=_stamps(final, manifest["files"]))

    @contextmanager
    def _locked(self, kind: Kind, key: str, timeout: float) -> Iterator[None]:
        path = self.root / "locks" / f"{kind}-{key}.lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CacheError(
                f"{self.root}: the cache cannot be written: {error}; set another folder"
            ) from error
        holder = path.with_suffix(".pid")
        lock = FileLock(path)
        try:
            lock.acquire(timeout=timeout)
        except Timeout as error:
            raise CacheError(
                f"{path}: still locked after {timeout:g} s, {_held_by(holder)}. Wait for it or raise"
                " engine_lock_timeout; a lock is released when its process ends"
            ) from error
        except OSError as error:
            raise CacheError(f"{path}: cannot be locked: {error}; set another cache folder") from error
        try:
            _note_holder(holder)
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()

    def _temporary(self, kind: Kind, key: str) -> Path:
        """Where an entry is made. Its key's lock guards it: what is found here under it is stale."""
        return self.root / "tmp" / f"{kind}-{key}"

    def _discard(self, kind: Kind, key: str) -> None:
        """Remove an entry, whose lock is held: out of sight by one rename, then from disk."""
        aside = self._temporary(kind, key)
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(parents=True, exist_ok=True)
        folder = self.root / kind / key
        if folder.exists():
            os.replace(folder, aside)
            shutil.rmtree(aside, ignore_errors=True)

    def _remove_stale(self) -> tuple[int, int]:
        """Remove what dead processes left under tmp; returns how many folders and bytes."""
        count = freed = 0
        for folder in sorted((self.root / "tmp").glob("*")):
            lock = FileLock(self.root / "locks" / f"{folder.name}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue  # in the making right now
            try:
                freed += _size(folder)
                shutil.rmtree(folder, ignore_errors=True)
                count += 1
            finally:
                lock.release()
        if count:
            logger.info("removed %d leftovers of interrupted builds from %s", count, self.root / "tmp")
        return count, freed

    def _listed(self, judge: Callable[[Path, Kind, str], Mapping[str, Any]]) -> tuple[Listed, ...]:
        entries = []
        for kind in KINDS:
            for folder in sorted((self.root / kind).glob("*")):
                try:
                    entries.append(_list_one(folder, kind, judge))
                except FileNotFoundError:
                    continue  # removed by another process meanwhile
        return tuple(sorted(entries, key=lambda entry: entry.used))


def _list_one(folder: Path, kind: Kind, judge: Callable[[Path, Kind, str], Mapping[str, Any]]) -> Listed:
    key, problem = folder.name, None
    try:
        manifest = judge(folder, kind, key)
    except _BadEntry as error:
        manifest, problem = {"identity": {}, "facts": {}}, str(error)
        with suppress(_BadEntry):  # its files may be broken and its manifest still tell what it was
            manifest = _read_manifest(folder, kind, key)
    stat = (folder / MANIFEST).stat() if (folder / MANIFEST).exists() else folder.stat()
    created = manifest.get("created")
    return Listed(
        kind=kind,
        key=key,
        folder=folder,
        bytes=_size(folder),
        created=datetime.fromisoformat(created).timestamp() if created else stat.st_mtime,
        used=stat.st_mtime,
        identity=manifest["identity"],
        facts=manifest["facts"],
        problem=problem,
        outdated=_outdated(manifest.get("versions", {})),
    )


def _falls_under(entry: Listed, older_than: float | None, unused: bool) -> bool:
    old = older_than is not None and time.time() - entry.used > older_than
    return old or (unused and (entry.outdated or entry.problem is not None))


def _over_size(entries: list[Listed], max_bytes: int) -> list[Listed]:
    """The least recently used that must go (``entries`` is in that order)."""
    chosen: list[Listed] = []
    total = sum(entry.bytes for entry in entries)
    for entry in entries:
        if total <= max_bytes:
            break
        chosen.append(entry)
        total -= entry.bytes
    return chosen


def _stamps(folder: Path, names: Iterable[str]) -> Stamps:
    """Of files in a folder; as long as a stamp stays, so does what is in the file."""
    states = {name: (folder / name).stat() for name in names}
    return {name: (state.st_ino, state.st_size, state.st_mtime_ns) for name, state in states.items()}


def _check(
    folder: Path, kind: Kind, key: str, identity: Mapping[str, Any] | None = None
) -> tuple[Mapping[str, Any], Stamps]:
    """The manifest of a sound entry, and the stamps of its files.

    Raises:
        _BadEntry: when it is corrupted, or belongs to something else.
    """
    manifest = _read_manifest(folder, kind, key, identity)
    files: Mapping[str, Any] = manifest["files"]
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    missing, extra = sorted(set(files) - present), sorted(present - set(files) - {MANIFEST})
    if missing:
        raise _BadEntry(f"corrupted: {missing[0]} is missing")
    if extra:
        raise _BadEntry(f"corrupted: {extra[0]} is not in its manifest")
    stamps: dict[str, tuple[int, ...]] = {}
    for name, expected in files.items():
        try:
            stamps |= _stamps(folder, [name])  # before it is read: what changes then is noticed later
            _, size, _ = stamps[name]
            same = size == expected["bytes"] and file_sha256(folder / name) == expected["sha256"]
        except OSError as error:
            raise _BadEntry(f"corrupted: {name} is not readable: {error}") from error
        if size != expected["bytes"]:
            raise _BadEntry(f"corrupted: {name} has {size} bytes, its manifest says {expected['bytes']}")
        if not same:
            raise _BadEntry(f"corrupted: {name} differs from the hash in its manifest")
    return manifest, stamps


def _read_manifest(
    folder: Path, kind: Kind, key: str, identity: Mapping[str, Any] | None = None
) -> Mapping[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _BadEntry(f"corrupted: {MANIFEST} is missing") from None
    except (OSError, ValueError) as error:
        raise _BadEntry(f"corrupted: {MANIFEST} is not readable as JSON: {error}") from error
    if not isinstance(manifest, dict):
        raise _BadEntry(f"corrupted: {MANIFEST} holds no JSON object")
    if manifest.get("schema_version") != SCHEMA_VERSION:
        found = manifest.get("schema_version")
        raise _BadEntry(f"foreign: its manifest is of schema {found!r}, this version reads {SCHEMA_VERSION}")
    if not manifest.keys() >= _KEYS or manifest["sha256"] != _manifest_hash(manifest):
        raise _BadEntry(f"corrupted: {MANIFEST} differs from its own hash")
    if identity is not None and manifest["identity"] != identity:
        raise _BadEntry(f"foreign: {_difference(manifest['identity'], identity)}")
    if (manifest["kind"], manifest["key"], _key(manifest["identity"])) != (kind, key, key):
        raise _BadEntry(f"foreign: its manifest is that of {manifest['kind']}/{manifest['key'][:12]}…")
    return manifest


def _write_manifest(
    folder: Path, kind: Kind, key: str, identity: Mapping[str, Any], facts: Mapping[str, Any]
) -> Mapping[str, Any]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "key": key,
        "identity": identity,
        "versions": identity.get("versions", {}),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": {
            path.relative_to(folder).as_posix(): {"sha256": file_sha256(path), "bytes": path.stat().st_size}
            for path in paths
        },
        "facts": _as_json(facts),
    }
    manifest["sha256"] = _manifest_hash(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return manifest


def _manifest_hash(manifest: Mapping[str, Any]) -> str:
    return _key({name: value for name, value in manifest.items() if name != "sha256"})


def _as_json(data: Mapping[str, Any]) -> dict[str, Any]:
    """The same data in JSON's types, so that it compares equal to what is read back."""
    plain: dict[str, Any] = json.loads(json.dumps(data, allow_nan=False))
    return plain


def _key(identity: Mapping[str, Any]) -> str:
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    names = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
    return ", ".join(f"its {name} is {found.get(name)!r}, not {expected.get(name)!r}" for name in names)


def _outdated(versions: Mapping[str, str]) -> bool:
    return distribution_versions(*versions) != versions


def _title(kind: Kind, identity: Mapping[str, Any]) -> str:
    parts = (identity.get(name) for name in ("component", "precision", "profile"))
    what = " ".join(part for part in parts if isinstance(part, str))
    return f"the {'ONNX model' if kind == 'onnx' else 'engine'} {what}".rstrip()


def _disk_full(error: BaseException, root: Path) -> bool:
    """Whether a full disk is behind a failure, so far as it can be known."""
    if isinstance(error, KeyboardInterrupt):
        return False
    return disk_full(error) or (isinstance(error, Exception) and _free(root) < FULL_BELOW)


def _free(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _note_holder(path: Path) -> None:
    """Who holds the lock, for the message of those who wait in vain. Best effort: the lock works without."""
    try:
        path.write_text(json.dumps({"pid": os.getpid(), "host": platform.node()}))
    except OSError as error:
        logger.debug("%s: %s", path, error)


def _held_by(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        return f"held by process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "held by a process that is not known"

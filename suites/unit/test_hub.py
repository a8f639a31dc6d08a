"""Models by their id on the hub: the cache's copy first, and nothing but what was asked for over the network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

import wan_trt_core
from wan_trt_core import doctor
from wan_trt_core.config import load_settings
from wan_trt_core.models.catalogue import resolve
from wan_trt_core.models.checkpoint import Checkpoint, CheckpointError
from wan_trt_core.models.hub import open_checkpoint

ID = "org/tiny-Diffusers"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = Path(wan_trt_core.__file__).parents[1]


def cached(cache: Path, checkpoint: Path) -> Path:
    """Put a checkpoint into the hub's cache as its client does: links to blobs. Returns the snapshot's folder."""
    repository = cache / f"models--{ID.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    for number, file in enumerate(sorted(path for path in checkpoint.rglob("*") if path.is_file())):
        blob, link = repository / "blobs" / f"{number:040x}", snapshot / file.relative_to(checkpoint)
        for path in (blob, link):
            path.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(file.read_bytes())
        link.symlink_to(os.path.relpath(blob, link.parent))
    for ref in ("main", "v1"):
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / ref).write_text(COMMIT)
    return snapshot


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's client, and a working folder; the client is offline."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


class TestCache:
    @pytest.mark.parametrize("revision", ["", "@v1", "@main", f"@{COMMIT}"])
    def test_what_it_holds_is_opened_offline(
        self, cache: Path, small_checkpoint: Path, revision: str
    ) -> None:
        snapshot = cached(cache, small_checkpoint)
        assert open_checkpoint(ID + revision).folder == snapshot
        named = resolve("wan2.1-t2v-1.3b", ID + revision)
        assert (named.checkpoint.folder, named.checkpoint.random) == (snapshot, False)
        own = resolve(ID + revision)
        assert (own.name, set(own.profiles)) == (f"tiny-Diffusers{revision}", {"64p-9f"})

    def test_engines_are_those_of_the_same_weights_in_a_folder(
        self, cache: Path, small_checkpoint: Path
    ) -> None:
        snapshot = cached(cache, small_checkpoint)
        folder = Checkpoint.open(small_checkpoint)
        for part in folder.parts:
            assert open_checkpoint(ID).weights_sha256(part) == folder.weights_sha256(part)
        weights = snapshot / "vae" / "diffusion_pytorch_model.safetensors"
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)  # through the link
        assert open_checkpoint(ID).weights_sha256("vae") != folder.weights_sha256("vae")

    def test_a_folder_of_that_name_comes_first(self, cache: Path, small_checkpoint: Path) -> None:
        cached(cache, small_checkpoint)
        Path(ID).parent.mkdir()
        Path(ID).symlink_to(small_checkpoint)
        assert open_checkpoint(ID).folder == Path(ID).absolute()

    def test_what_is_no_id_is_a_folder(self, cache: Path) -> None:
        for place in ("./org/name", "../org/name", "/org/name", "a/b/c", "name", Path("/org/name")):
            with pytest.raises(CheckpointError, match=r"no checkpoint at .*there is no such folder"):
                open_checkpoint(place)

    def test_an_impossible_id_is_refused(self, cache: Path) -> None:
        with pytest.raises(CheckpointError, match=r"a--b/c: no such folder.*Cannot have -- or"):
            open_checkpoint("a--b/c")

    @pytest.mark.parametrize("place", [ID, f"{ID}@v2"])
    def test_offline_without_a_copy_it_says_what_to_do(
        self, cache: Path, small_checkpoint: Path, place: str
    ) -> None:
        if "@" in place:
            cached(cache, small_checkpoint)  # another revision
        command = f"hf download {ID}{' --revision v2' if '@' in place else ''}"
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(place)
        for part in (place, "no such folder", str(cache), "HF_HUB_OFFLINE", command, "--wan-checkpoint"):
            assert part in str(caught.value)

    def test_offline_half_a_copy_is_told(self, cache: Path, small_checkpoint: Path) -> None:
        weights = cached(cache, small_checkpoint) / "vae" / "diffusion_pytorch_model.safetensors"
        weights.unlink()
        with pytest.raises(
            CheckpointError, match=r"vae/diffusion_pytorch_model.safetensors: missing.*HF_HUB"
        ):
            open_checkpoint(ID)

    def test_the_doctor_only_looks(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        asked: list[Any] = []
        monkeypatch.setattr("huggingface_hub.HfApi.repo_info", lambda *args, **_: asked.append(args))
        given = {"model": "wan2.1-t2v-1.3b", "checkpoint": ID}
        finding = doctor._checkpoint(load_settings(overrides=given, environ={}).settings)
        assert (finding.status, finding.required, asked) == ("missing", True, [])
        assert f"hf download {ID}" in finding.detail and "OFFLINE" not in finding.detail


class Hub:
    """A hub on this machine, with one model; notes what is asked of it."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []
        self.unavailable: set[str] = set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.asked.append(self.path)
                path = self.path.partition("?")[0]
                file = folder / path.rpartition(f"/resolve/{COMMIT}/")[2]
                if path == f"/api/models/{ID}/revision/main":
                    self.answer(json.dumps({"id": ID, "sha": COMMIT}).encode())
                elif path == f"/api/models/{ID}/tree/{COMMIT}":
                    files = [path for path in folder.rglob("*") if path.is_file()]
                    entries = [
                        {"type": "file", "path": path.relative_to(folder).as_posix(),
                         "size": path.stat().st_size, "oid": f"{number:040x}"}
                        for number, path in enumerate(sorted(files))
                    ]  # fmt: skip
                    self.answer(json.dumps(entries).encode())
                elif (
                    path.startswith(f"/{ID}/resolve/") and file.is_file() and file.name not in hub.unavailable
                ):
                    self.answer(file.read_bytes(), ETag=f'"{abs(hash(path)):040x}"')
                else:
                    self.answer(b"", 404, **{"X-Error-Code": "RepoNotFound"})

            do_HEAD = do_GET

            def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
                self.send_response(status)
                headers |= {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT}
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def files(self) -> set[str]:
        """The model's files that were asked for."""
        return {path.rpartition(f"/{COMMIT}/")[2] for path in self.asked if "/resolve/" in path}


@pytest.fixture
def hub(small_checkpoint: Path, tmp_path: Path) -> Iterator[Hub]:
    """A hub that also has what no checkpoint needs, pickled weights among it."""
    folder = tmp_path / "model"
    for file in (path for path in small_checkpoint.rglob("*") if path.is_file()):
        (folder / file.relative_to(small_checkpoint)).parent.mkdir(parents=True, exist_ok=True)
        (folder / file.relative_to(small_checkpoint)).write_bytes(file.read_bytes())
    for name in (
        "vae/diffusion_pytorch_model.bin",
        "README.md",
        "assets/a.json",
        "image_encoder/model.safetensors",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not for us")
    hub = Hub(folder)
    threading.Thread(target=hub.server.serve_forever, daemon=True).start()
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def run(hub: Hub, tmp_path: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python in a fresh process and folder: its hub is ours, and it is not told to stay offline."""
    (tmp_path / "work").mkdir(exist_ok=True)
    kept = {
        name: value
        for name, value in os.environ.items()
        if "OFFLINE" not in name and "proxy" not in name.lower()
    }
    url = f"http://127.0.0.1:{hub.server.server_port}"
    theirs = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_CACHE": str(tmp_path / "hub")}
    ours = {"PYTHONPATH": str(REPOSITORY), "WAN_TRT_CONFIG": ""}
    return subprocess.run(
        [sys.executable, *command],
        cwd=tmp_path / "work",
        env=kept | theirs | ours | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


DESCRIBE = """
import sys
from wan_trt_core.models.hub import open_checkpoint
print(open_checkpoint(sys.argv[1], weights=False).config("transformer")["num_layers"])
"""
INSPECT = ("-m", "wan_trt_core.cli", "inspect", ID, "--json")


class TestDownload:
    def test_only_what_a_checkpoint_needs_and_only_once(
        self, hub: Hub, tmp_path: Path, small_checkpoint: Path
    ) -> None:
        done = run(hub, tmp_path, *INSPECT)
        assert done.returncode == 0, done.stderr
        snapshot = Path(json.loads(done.stdout)["source"])
        assert snapshot.is_relative_to(tmp_path / "hub") and snapshot.name == COMMIT
        wanted = {
            p.relative_to(small_checkpoint).as_posix() for p in small_checkpoint.rglob("*") if p.is_file()
        }
        assert {p.relative_to(snapshot).as_posix() for p in snapshot.rglob("*") if p.is_file()} == wanted
        assert hub.files() == wanted
        hub.asked.clear()
        assert run(hub, tmp_path, *INSPECT).stdout == done.stdout
        assert run(hub, tmp_path, *INSPECT, HF_HUB_OFFLINE="1").stdout == done.stdout
        assert not hub.asked

    def test_half_a_copy_is_completed(self, hub: Hub, tmp_path: Path) -> None:
        hub.unavailable.add("model.safetensors")
        failed = run(hub, tmp_path, *INSPECT)
        assert failed.returncode == 3 and "Traceback" not in failed.stderr
        hub.unavailable.clear()
        assert run(hub, tmp_path, *INSPECT).returncode == 0

    def test_its_configurations_can_be_had_without_its_weights(self, hub: Hub, tmp_path: Path) -> None:
        done = run(hub, tmp_path, "-c", DESCRIBE, ID)
        assert done.returncode == 0, done.stderr
        wanted = {
            "model_index.json",
            *(f"{part}/config.json" for part in ("transformer", "vae", "text_encoder")),
        }
        assert (json.loads(done.stdout), hub.files()) == (3, wanted)
        hub.asked.clear()
        assert (run(hub, tmp_path, "-c", DESCRIBE, ID).stdout, hub.asked) == (done.stdout, [])

    def test_another_pipeline_is_refused_before_its_weights(self, hub: Hub, tmp_path: Path) -> None:
        index = tmp_path / "model" / "model_index.json"
        index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "FluxPipeline"}))
        done = run(hub, tmp_path, *INSPECT)
        assert (done.returncode, hub.files()) == (3, {"model_index.json"})
        assert "a FluxPipeline, not a WanPipeline" in done.stderr

    def test_a_model_in_another_format_is_refused(self, hub: Hub, tmp_path: Path) -> None:
        (tmp_path / "model" / "model_index.json").unlink()
        done = run(hub, tmp_path, *INSPECT)
        assert (done.returncode, hub.files()) == (3, set())
        assert "those whose names end in -Diffusers" in done.stderr

    def test_what_the_hub_does_not_have_is_told(self, hub: Hub, tmp_path: Path) -> None:
        done = run(hub, tmp_path, "-m", "wan_trt_core.cli", "inspect", "org/absent")
        assert done.returncode == 3 and "Traceback" not in done.stderr
        for part in (
            "error: org/absent",
            "Repository Not Found",
            "hf download org/absent",
            "--checkpoint FOLDER",
        ):
            assert part in done.stderr

    def test_without_a_network_it_says_so(self, hub: Hub, tmp_path: Path) -> None:
        done = run(hub, tmp_path, *INSPECT, HF_ENDPOINT="http://127.0.0.1:9")
        assert done.returncode == 3 and "Traceback" not in done.stderr
        assert f"error: {ID}" in done.stderr and "http://127.0.0.1:9" in done.stderr


LOAD = """
import sys
from wan_trt_core.models.catalogue import resolve
for model in ("tiny-wan", sys.argv[1]):
    resolve(model).checkpoint.pipeline()
resolve("wan2.1-t2v-1.3b").checkpoint.scheduler()
"""
"""The embedded checkpoint, one in a folder, and random weights."""


def test_nothing_asks_the_hub_without_an_id(hub: Hub, tmp_path: Path, small_checkpoint: Path) -> None:
    done = run(hub, tmp_path, "-c", LOAD, str(small_checkpoint))
    assert (done.returncode, hub.asked) == (0, []), done.stderr

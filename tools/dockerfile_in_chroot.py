"""Run the steps of the Dockerfile in a folder that holds a bare Debian or Ubuntu, where there is no Docker engine.

    debootstrap --variant=minbase --include=ca-certificates trixie /tmp/fresh
    python tools/dockerfile_in_chroot.py /tmp/fresh

as root, with --build-arg as for Docker. The base image is what the folder holds, so nothing of CUDA is checked. What
the machine says about its network (names, certificates, proxies, package indexes) is taken over.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from string import Template

REPOSITORY = Path(__file__).parents[1]
NETWORK_FILES = ("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt")
NETWORK_VARIABLES = re.compile(
    r"(https?_proxy|no_proxy|ssl_cert_file|requests_ca_bundle|(pip|uv)_.*)$", re.IGNORECASE
)


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """The instructions and their arguments, in order; lines that go on put together, comments left out."""
    lines = [line for line in dockerfile.splitlines() if not line.lstrip().startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ")
    return [
        (word, rest.strip()) for word, _, rest in (line.partition(" ") for line in whole.splitlines() if line)
    ]


def run_steps(steps: list[tuple[str, str]], root: Path, given: dict[str, str], last: list[str]) -> None:
    """Run the steps in ``root`` with the arguments ``given``, then the command ``last`` in the place of ``CMD``.

    Raises:
        subprocess.CalledProcessError: when a step fails; the steps after it are not run.
        ValueError: for an instruction that is not known here.
    """
    environ = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
    environ |= {name: value for name, value in os.environ.items() if NETWORK_VARIABLES.match(name)}
    arguments: dict[str, str] = {}
    user, folder = "0", "/"

    def inside(command: list[str]) -> None:
        change = ["chroot", f"--userspec={user}:{user}", str(root), "env", "-C", folder, *command]
        subprocess.run(change, env={**environ, **arguments}, check=True)

    for word, rest in steps:
        print(f"== {word} {rest[:100]}", flush=True)
        expanded = Template(rest).safe_substitute(environ | arguments)
        if word == "ARG":
            name, _, value = rest.partition("=")
            arguments[name] = given.get(name, value.strip('"'))
        elif word == "ENV":
            environ |= dict(pair.split("=", 1) for pair in expanded.split())
        elif word == "USER":
            user, environ["HOME"] = expanded, "/tmp"
        elif word == "WORKDIR":
            folder = rest
        elif word == "COPY":
            source, target = rest.split()
            _copy(source, root / target.lstrip("/"))
        elif word == "RUN":
            inside(["/bin/sh", "-c", rest])
        elif word not in ("FROM", "VOLUME", "CMD"):
            raise ValueError(f"{word} is not known here")
    inside(last)


def _copy(source: str, target: Path) -> None:
    """Copy one file, or for ``.`` what ``.dockerignore`` lets through."""
    ignore = (REPOSITORY / ".dockerignore").read_text().split()
    kept = [line[1:] for line in ignore if line.startswith("!")] if source == "." else [source]
    for name in kept:
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if (REPOSITORY / name).is_dir():
            shutil.copytree(
                REPOSITORY / name, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(REPOSITORY / name, place)


def main() -> int:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("root", type=Path, help="folder that holds a bare Debian or Ubuntu; it is changed")
    parser.add_argument("last", nargs="*", default=["wan-trt", "doctor"], help="what is run at the end")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE", help="of an ARG")
    given = parser.parse_args()
    for name in NETWORK_FILES:
        if Path(name).is_file():
            shutil.copy(name, given.root / name.lstrip("/"))
    subprocess.run(["mount", "-t", "proc", "proc", str(given.root / "proc")], check=True)  # as in a container
    try:
        steps = instructions((REPOSITORY / "Dockerfile").read_text())
        run_steps(steps, given.root, dict(pair.split("=", 1) for pair in given.build_arg), given.last)
    except subprocess.CalledProcessError as error:
        print(f"error: this step failed with exit code {error.returncode}", file=sys.stderr)
        return 1
    finally:
        subprocess.run(["umount", str(given.root / "proc")], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

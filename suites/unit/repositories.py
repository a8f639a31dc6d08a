"""Git repositories for tests of what is measured from one."""

from __future__ import annotations

import subprocess
from pathlib import Path


def committed(folder: Path) -> None:
    """Make the folder a repository whose only commit has all that is in it."""
    who = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    for command in (("init",), ("add", "."), (*who, "commit", "-m", "all")):
        subprocess.run(["git", "-C", str(folder), *command], check=True, capture_output=True)

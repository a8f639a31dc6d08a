"""Run the commands of a page and write what the gates said below each.

    python tools/record_examples.py docs/gate_examples.md                        # all
    python tools/record_examples.py docs/gate_examples.md --only examples/gates  # where the prompt or command has it

A command is a block of the language ``console`` whose first line is ``FOLDER$ COMMAND``; the folder is relative to this
repository, none is its root, and ``> `` continues a command. Of what pytest prints the page keeps the failure messages;
where nothing failed, the table of verdicts. Exit codes: 0 written, 1 a command gave no verdict (nothing is written).
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent

EXAMPLE = re.compile(
    r"^(?P<head>```console\n(?P<folder>[\w./-]*)\$ (?P<command>.+\n(?:> .*\n)*))(?P<output>(?:(?!```).*\n)*)```$",
    re.MULTILINE,
)
SECTION = re.compile(r"^=+ (.+?) =+$", re.MULTILINE)
COLUMNS = "100"
"""Width of the terminal that the page shows; an example that is run again needs the same."""


class NoVerdict(ValueError):
    """What a command printed holds no verdict; the message says what it printed instead."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", type=Path, help="Markdown file, rewritten in place")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="run the commands that hold TEXT, leave the others"
    )
    options = parser.parse_args(arguments)
    try:
        text = recorded(options.page.read_text(), _run, options.only)
    except NoVerdict as error:
        print(error, file=sys.stderr)
        return 1
    options.page.write_text(text)
    return 0


def recorded(page: str, run: Callable[[str, str], str], only: str = "") -> str:
    """The page with the outputs that ``run(folder, command)`` gives; examples without ``only`` stay as they are."""

    def again(example: re.Match[str]) -> str:
        if only not in example["head"]:
            return example[0]
        command = example["command"].replace("\n> ", "\n")
        return f"{example['head']}{run(example['folder'], command)}\n```"

    return EXAMPLE.sub(again, page)


def said(output: str, folder: Path) -> str:
    """What the gates said in the output of pytest that ran in ``folder``, paths below it as relative ones.

    Raises:
        NoVerdict: when there is neither a failure message nor a table of verdicts.
    """
    titles_and_bodies = SECTION.split(output)[1:]
    sections = dict(zip(titles_and_bodies[::2], titles_and_bodies[1::2], strict=True))
    if failed := sections.get("FAILURES", "") + sections.get("ERRORS", ""):
        lines = [line for line in failed.splitlines() if not line.startswith("___")]
    elif "wan-trt" in sections:
        lines = sections["wan-trt"].partition("\nhardware ")[0].splitlines()
    else:
        raise NoVerdict(f"no verdict in what was printed:\n{output}")
    return "\n".join(line.rstrip() for line in lines).strip().replace(f"{folder}/", "")


def _run(folder: str, command: str) -> str:
    print(f"{folder}$ {command}", end="", flush=True)
    where, given = REPOSITORY / folder, os.environ.get("PYTEST_ADDOPTS", "")
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=where,
        env={**os.environ, "COLUMNS": COLUMNS, "PYTEST_ADDOPTS": f"{given} --show-capture=no"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return said(done.stdout, where)


if __name__ == "__main__":
    sys.exit(main())

"""``wan-trt inspect``: what is in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer

from wan_trt_core.cli.options import CheckpointOption, JsonOption
from wan_trt_core.cli.output import print_json, print_line, print_table, readable_size

commands = typer.Typer()


@commands.command(epilog="Example: wan-trt inspect ~/models/Wan2.1-T2V-1.3B-Diffusers")
def inspect(
    model: Annotated[
        str,
        typer.Argument(metavar="CHECKPOINT", help="Checkpoint folder, hub id, or a name of the catalogue."),
    ],
    checkpoint: CheckpointOption = None,
    tensors: Annotated[
        bool, typer.Option("--tensors", help="List every tensor with dtype and shape.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List a checkpoint's parts with parameters, dtypes and shapes, and the components it is exported as."""
    from wan_trt_core.models.catalogue import resolve
    from wan_trt_core.models.components import components_of, get_component

    resolved = resolve(model, checkpoint)
    parts = resolved.checkpoint.inspect()
    components = [
        get_component(name).describe(resolved.checkpoint) for name in components_of(resolved.checkpoint)
    ]
    if as_json:
        print_json({"source": resolved.checkpoint.source, "parts": parts, "components": components})
        return
    print_table(
        f"{resolved.name}: {resolved.checkpoint.source}",
        ("part", "class", "parameters", "size", "dtypes", "tensors"),
        [
            (name, part["class"], f"{part['parameters']:,}", readable_size(part["bytes"]), ", ".join(part["dtypes"]),
             str(len(part["tensors"])))
            for name, part in parts.items()
        ],
    )  # fmt: skip
    for each in components:
        print_line(f"\n{each['component']} (of {each['part']})")
        print_line(f"  inputs:  {_shapes(each['inputs'])}")
        print_line(f"  outputs: {_shapes(each['outputs'])}")
        if each["fp32_islands"]:
            print_line(f"  fp32 inside half precision: {', '.join(each['fp32_islands'])}")
    if tensors:
        rows = [
            (f"{name}.{tensor}", info["dtype"], "x".join(map(str, info["shape"])))
            for name, part in parts.items()
            for tensor, info in part["tensors"].items()
        ]
        print_table("tensors", ("tensor", "dtype", "shape"), rows)


def _shapes(tensors: Mapping[str, list[int | str]]) -> str:
    """Names and axes, the many caches of a streaming graph cut short."""
    names = [f"{name} ({', '.join(map(str, axes))})" for name, axes in tensors.items()]
    return ", ".join(names if len(names) <= 8 else [*names[:2], f"… {len(names) - 3} more", names[-1]])

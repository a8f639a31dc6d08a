"""Whose weights the selected cases run with, and whether they are of their models: known before anything runs."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wan_trt_core.cases import Case
    from wan_trt_core.models.checkpoint import Checkpoint
    from wan_trt_core.pytest_plugin.session import WanSession

OPTION = "--wan-checkpoint"


def told(session: WanSession) -> str:
    """The given checkpoints, for people; empty where there is none."""
    if (given := session.settings.checkpoint) is None:
        return ""
    places = [f"{model}={place}" for model, place in given.items()] if isinstance(given, dict) else [given]
    whose = "by model" if isinstance(given, dict) else "of all cases"
    return f"checkpoint {', '.join(map(str, places))}, {whose} ({session.loaded.sources['checkpoint']})"


def refusal(session: WanSession, cases: Iterable[Case]) -> str | None:
    """Why the given checkpoints cannot be those of the selected cases; ``None`` when they can, or none is given.

    Of a model of the hub that is not in its cache the configurations are downloaded, some kilobytes.
    """
    of_model: dict[str, list[Case]] = {}
    for case in cases:
        of_model.setdefault(case.model, []).append(case)
    if not of_model or session.settings.checkpoint is None:
        return None
    source = session.loaded.sources["checkpoint"]
    why = _of_no_case(session) or _unfit(session, of_model) or _random_alone(session, of_model)
    return f"{source}: {why}" if why else None


def _of_no_case(session: WanSession) -> str | None:
    """A model's checkpoint that no case would ever get: a misspelt name would leave its cases with random weights.

    What is no option may be there for other case files too.
    """
    from wan_trt_core.models.catalogue import installed_names, model_names

    given = session.settings.checkpoint
    own = session.models
    known = (
        own if session.loaded.sources["checkpoint"] == OPTION else (*own, *model_names(), *installed_names())
    )
    unknown = (
        next((model for model in given if model not in known), None) if isinstance(given, dict) else None
    )
    if unknown is None:
        return None
    near = difflib.get_close_matches(unknown, known, n=1)
    hint = f"did you mean {near[0]!r}?; " if near else ""
    return f"no case of {session.case_path} has the model {unknown!r}; {hint}its models are {', '.join(own)}"


def _random_alone(session: WanSession, of_model: Mapping[str, list[Case]]) -> str | None:
    """The cases that name `layers` of a model which has a checkpoint."""
    cut = [
        case
        for model, cases in of_model.items()
        for case in cases
        if case.layers is not None and session.settings.checkpoint_of(model) is not None
    ]
    if not cut:
        return None
    names = ", ".join(case.id for case in cut)
    models = " and ".join(dict.fromkeys(case.model for case in cut))
    return (
        f"only random weights can have fewer `layers`, as the selected {names}; leave such cases out (-k), or give"
        f" {models} no checkpoint: {OPTION} MODEL=FOLDER for each of the others"
    )


def _unfit(session: WanSession, of_model: Mapping[str, list[Case]]) -> str | None:
    """A checkpoint that cannot be opened, or is none of a model that it goes to.

    One that is given for a model, or goes to the cases of only one, may be cut down, of another size. Of one for the
    cases of several models that would hide whose weights they run with.
    """
    from wan_trt_core.models.catalogue import installed_names, misfit
    from wan_trt_core.models.checkpoint import CheckpointError
    from wan_trt_core.models.hub import open_checkpoint

    by_model = isinstance(session.settings.checkpoint, dict)
    opened: dict[Path | str, Checkpoint] = {}
    unfit: dict[str, str] = {}
    for model in of_model:
        place = session.settings.checkpoint_of(model)
        if place is None or model in installed_names():  # what those take for one their packages know
            continue
        try:
            if place not in opened:
                opened[place] = open_checkpoint(place, weights=False)
        except (CheckpointError, OSError) as error:
            return str(error)
        if why := misfit(model, opened[place], any_size=by_model or len(of_model) == 1):
            if by_model:
                return f"{model}={place}: {why}"
            unfit[model] = why
    if not unfit:
        return None
    given = session.settings.checkpoint
    fit = [model for model in of_model if model not in unfit]
    name = fit[0] if len(fit) == 1 else "MODEL"
    return (
        f"{given} goes to all selected cases, and is {'; '.join(unfit.values())}. Name the model whose cases it is for,"
        f" once for each that has one: {OPTION} {name}={given}"
    )

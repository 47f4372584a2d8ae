"""The runs of a sweep: which settings each one changes, its folder, and what it can't change."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from trl import ModelConfig

from ...parsing import ParseError, raise_all
from ...registry import did_you_mean
from ...strict_yaml import YamlError, dump_yaml, parse_yaml, read_yaml
from ...training import PreferenceConfig
from ...training.safety.output_folder import RESULT
from ..recipe_settings import Recipe, RecipeArguments, parse_recipe

# The first run sets them for the whole process.
_OF_THE_PROCESS = ("deepspeed", "env", "fsdp", "full_determinism", "import_module", "tf32", "use_cpu")
# The sweep decides them for each run.
_OF_THE_SWEEP = ("output_dir", "overwrite_output_dir", "push_to_hub", "resume_from_checkpoint", "resume_from_hub")
# What may differ between a finished run and the same run started again.
_NO_MATTER = ("output_dir", "resume_from_checkpoint")
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


class PlannedRun(NamedTuple):
    """A run of a sweep.

    Attributes:
        name: of its folder.
        folder: where it goes.
        args: what `train_recipe` takes.
        recipe: the same, parsed.
        finished: whether the folder holds it already.
    """

    name: str
    folder: Path
    args: list[str]
    recipe: Recipe
    finished: bool


def grid_runs(grid: Sequence[str]) -> list[dict[str, Any]]:
    """Return the settings of each run of a grid: all combinations, the last key changing fastest.

    Args:
        grid: a text such as "beta=0.01,0.1" for each key. A list or mapping is written as in YAML, for example
            "loss_type=dpo,[dpo,sft]".

    Raises:
        ParseError: a text has no such form, or a key is given twice.
    """
    values: dict[str, list[Any]] = {}
    for text in grid:
        key, equals, given = text.partition("=")
        parts = _split(given)
        if not equals or not key or not all(parts):
            raise ParseError(f"--grid: {text!r} isn't a key with values, such as beta=0.01,0.05,0.1.")
        if key in values:
            raise ParseError(f"--grid: {key} is given twice. Write all its values after one {key}=.")
        values[key] = [_value(part) for part in parts]
    return [dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values())]


def named_runs(path: str) -> dict[str, dict[str, Any]]:
    """Return the settings of each run in a YAML file, which maps names of runs to what they change.

    Raises:
        ParseError: the file can't be read, or has another form.
    """
    try:
        runs = read_yaml(path).values
    except YamlError as error:
        raise ParseError(f"--runs: {error}") from None
    for name, changes in runs.items():
        if not isinstance(changes, dict) or not _SAFE_NAME.fullmatch(name):
            raise ParseError(
                f"--runs: {path}, {name!r}: expected a name of letters, digits and ._+- with a mapping of settings."
            )
    if not runs:
        raise ParseError(f"--runs: {path} has no runs.")
    return runs


def plan_sweep(
    args: Sequence[str], runs: Sequence[Mapping[str, Any]] | Mapping[str, Mapping[str, Any]]
) -> list[PlannedRun]:
    """Parse and check all runs before anything is loaded.

    A run whose adapter is trained against a reference takes its log-probs from the reference cache, which the runs
    share, unless the recipe says otherwise. A run that saves checkpoints goes on from its newest.

    Args:
        args: `--config FILE` and options, as `train_recipe` takes them. `output_dir` is the folder of the sweep.
        runs: what each run changes, from `grid_runs`, or by name from `named_runs`.

    Returns:
        The runs in their order, each with a folder of its own inside that of the sweep.

    Raises:
        ParseError: all faults at once: unknown keys, values out of range, two runs that are the same, a finished run
            with other settings.
        FileExistsError: the sweep's folder is a file or holds a single run.
    """
    given = _given(args)
    names = list(runs) if isinstance(runs, Mapping) else [None] * len(runs)
    all_changes = list(runs.values()) if isinstance(runs, Mapping) else list(runs)
    raise_all("in the sweep", [*_misplaced(given), *_unusable({key for one in all_changes for key in one}, args)])
    faults: dict[str, None] = {}  # in order, each once: a value that is wrong is wrong in every combination
    plan: dict[str, PlannedRun] = {}
    for name, changes in zip(names, all_changes, strict=True):
        try:
            run = _planned(name, changes, list(args), {*given, *changes})
        except ParseError as error:
            faults[str(error) if name is None else f"{name}: {error}"] = None
            continue
        if run.name in plan:
            faults[f"--grid: {_shown(changes)} occurs twice, as another way to write the same values."] = None
        plan[run.name] = run
    raise_all("in the sweep", list(faults))
    return list(plan.values())


def _planned(name: str | None, changes: Mapping[str, Any], args: list[str], given: Collection[str]) -> PlannedRun:
    args = [*args, *_options(changes)]
    recipe = parse_recipe(args)
    name = name or "-".join(f"{key}-{_canonical(_parsed(recipe, key))}" for key in changes)
    config, folder = recipe.config, Path(str(recipe.config.output_dir)) / name
    if recipe.model.use_peft and "precompute_ref_log_probs" not in given and _can_store(recipe):
        args += ["--precompute_ref_log_probs", "true"]
    if config.save_strategy != "no":
        args += ["--resume_from_checkpoint", "true"]
    finished = (folder / RESULT).exists()
    recipe = parse_recipe(args)
    if finished:
        _check_same(folder, recipe)
    return PlannedRun(name, folder, [*args, "--output_dir", str(folder)], recipe, finished)


def _can_store(recipe: Recipe) -> bool:
    config = recipe.config
    return bool(
        config.objective().reads_reference and not config.sync_ref_model and not recipe.arguments.dataset_streaming
    )


def _check_same(folder: Path, recipe: Recipe) -> None:
    try:
        then = read_yaml(folder / "recipe.yaml").values
    except YamlError as error:
        raise ParseError(f"{folder} holds a finished run, but not its recipe: {error} Move the folder away.") from None
    now = parse_yaml(dump_yaml(recipe.settings), "the recipe").values
    differing = [key for key in sorted({*then, *now} - {*_NO_MATTER}) if then.get(key) != now.get(key)]
    if differing:
        values = ", ".join(f"{key} was {then.get(key)!r} and is {now.get(key)!r}" for key in differing)
        raise ParseError(
            f"{folder} holds a finished run with other settings: {values} (None: the default). Choose another "
            "output_dir, or move the folder away."
        )


def _given(args: Sequence[str]) -> set[str]:
    """The names of the settings in the recipe and among the options."""
    names = {word.removeprefix("--").partition("=")[0] for word in args if word.startswith("--")}
    if "--config" in args[:-1]:
        try:
            names |= set(read_yaml(args[list(args).index("--config") + 1]).values)
        except YamlError as error:
            raise ParseError(f"--config: {error}") from None
    return names


def _misplaced(given: Collection[str]) -> list[str]:
    return [
        f"{name} has no place in a sweep: {why}"
        for name, why in {
            "overwrite_output_dir": "finished runs are kept. Move away the folders of those to train again.",
            "push_to_hub": "it would push every run. Push the one that you choose with `trl-dpo-ext push`.",
            "resume_from_checkpoint": "runs that save checkpoints go on from them. Remove it.",
            "resume_from_hub": "its runs have no checkpoints there. Remove it.",
        }.items()
        if name in given
    ]


def _unusable(keys: Collection[str], args: Sequence[str]) -> list[str]:
    known = {
        field.name for kind in (RecipeArguments, PreferenceConfig, ModelConfig) for field in dataclasses.fields(kind)
    }
    on_command_line = {word.removeprefix("--").partition("=")[0] for word in args if word.startswith("--")}
    faults = []
    for key in sorted(keys):
        if key in _OF_THE_PROCESS:
            faults.append(
                f"{key} can't differ between the runs of a sweep: it changes the whole process. Start "
                "a sweep for each value."
            )
        elif key in _OF_THE_SWEEP:
            faults.append(f"{key} can't be swept: the sweep sets it for each run.")
        elif key not in known:
            faults.append(f"The swept key {key!r} is no setting of a recipe.{did_you_mean(key, known)}")
        elif key in on_command_line:
            faults.append(f"{key} is swept and given as an option. Remove one of the two.")
    return faults


def _split(text: str) -> list[str]:
    """Split at commas, except inside brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        depth += (character in "[{") - (character in "]}") if not quote else 0
        if character == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _value(text: str) -> Any:
    if text[0] not in "[{":
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ParseError(f"--grid: {text!r} is no list or mapping ({error}).") from None


def _options(changes: Mapping[str, Any]) -> list[str]:
    options = []
    for key, value in changes.items():
        if value is None:
            raise ParseError(f"{key}: null can't be swept. Leave the key out to take the default.")
        if isinstance(value, list):
            options += [f"--{key}", *map(str, value)]
        else:
            plain = value if isinstance(value, str) else json.dumps(value)
            options += [f"--{key}", plain]
    return options


def _parsed(recipe: Recipe, key: str) -> Any:
    return next(getattr(part, key) for part in recipe[:3] if hasattr(part, key))


def _canonical(value: Any) -> str:
    """Return a value as part of a folder's name: 0.1, 1e-1 and 0.10 are the same."""
    text = "+".join(map(str, value)) if isinstance(value, list) else str(value)
    if isinstance(value, dict):
        text = json.dumps(value, sort_keys=True)
    if _SAFE_NAME.fullmatch(text) and len(text) <= 40:
        return text
    short = re.sub(r"[^A-Za-z0-9._+]+", "_", text).strip("_.")[:30]
    return text if re.fullmatch(r"-[0-9.e+-]+", text) else f"{short}_{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def _shown(changes: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in changes.items())

"""The command line of a command: TRL's parser, with help in groups, and with the nearest name where one is not known."""

import argparse
import os
from collections.abc import Iterable, Sequence
from dataclasses import fields
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

import yaml
from trl import TrlParser

from vision_rl.recording import plain, without_secrets


LOOKING = ("eval", "predict", "analyze", "report")  # commands that look at what a training has made
PER_RUN = ("bf16", "use_cpu")  # a training's, which an evaluation has too

# Options that name folders or files, besides those whose names end like some.
PATHS = (
    "accelerate_config",
    "before",
    "config",
    "dataset_name",
    "images",
    "model",
    "reward",
    "stage1",
    "task",
    "tokenizer",
)
PATH_ENDINGS = ("_dir", "_file", "_init", "_checkpoint")

UNIONS = (Union, UnionType)  # as `Optional[int]` and as `int | None`


class CommandParser(TrlParser):
    """Parses the options of a command from its dataclasses and a `--config`: a YAML file or the name of a recipe.

    A config may say its `command`, variables of the environment in `env`, as TRL's, and in `eval` what an evaluation of the
    run takes besides.

    Args:
        command: its name.
        dataclass_types: of its options.
        description: what it does.
        epilog: of the help.
        of_evaluation: the dataclasses whose options the section `eval` of a config may have.

    Raises:
        ValueError: in place of argparse's exit, for options and keys that are unknown, with the nearest that is.
    """

    def __init__(
        self,
        command: str,
        dataclass_types: Iterable[type],
        description: str,
        epilog: str = "",
        of_evaluation: Iterable[type] = (),
    ):
        dataclass_types = tuple(dataclass_types)
        super().__init__(
            dataclass_types,  # type: ignore[arg-type]
            prog=f"vision-rl {command}",
            usage=f"vision-rl {command} {'RUN_DIR ' if command == 'report' else ''}[--config FILE_OR_RECIPE] [options]",
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=120),
        )
        self.command = command
        self.types = {name: kind for each in dataclass_types for name, kind in get_type_hints(each).items()}
        self.of_evaluation = {option.name for kind in of_evaluation for option in fields(kind)}
        self.given: dict[str, Any] = {}  # what the command line and its config have said, as a recipe says it
        for group in self._action_groups:
            group.title = {"options": "Others"}.get(str(group.title), group.title)

    def print_help(self, file=None) -> None:
        for action in self._actions:
            if isinstance(action, argparse._StoreFalseAction):  # `--no_x`, which has the help of `x`
                action.help = argparse.SUPPRESS
            elif action.option_strings and action.dest != "help":
                action.option_strings = action.option_strings[:1]  # without --like-this, which is taken too
                action.metavar = action.metavar or ("true|false" if action.nargs == "?" else "VALUE")
                if action.default is not None and action.help:
                    action.help += f" (default: {action.default})".replace("%", "%%")
        super().print_help(file)

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}. `{self.prog} --help` lists the options.")

    def parse(self, arguments: Sequence[str]) -> tuple[Any, ...]:
        """One object of each dataclass."""
        arguments = list(arguments)
        known = [action.dest for action in self._actions if action.dest != "help"]
        taken = [
            "config",
            *(name[2:] for action in self._actions for name in action.option_strings if name[:2] == "--"),
        ]
        given = [argument[2:].partition("=")[0] for argument in arguments if argument.startswith("--")]
        self._check_known("option", given, taken)
        given = [name.replace("-", "_") for name in given if name not in ("config", "help")]
        path = config_path(arguments)
        if path is not None:
            config, is_own = config_for(self.command, arguments)
            self.given = {key: said for key, said in read_config(arguments).items() if key in ("env", "eval")}
            self._check_known(
                "key", list(self.given.get("eval", {})), sorted(self.of_evaluation), f", which is in eval of {path}"
            )
            os.environ.update({name: str(value) for name, value in config.pop("env", {}).items()})
            if is_own:
                self._check_known("key", list(config), known, f", which is in {path}")
            config = {key: value for key, value in config.items() if key in known}
            lists = {action.dest for action in self._actions if action.nargs in ("+", "*")}
            for name, value in config.items():
                if name == "resume_from_checkpoint" and isinstance(value, bool):
                    continue  # a text, or whether to
                config[name] = _of_config(f"{path}: the option `{name}`", value, self.types[name], name in lists)
            given += [name for name in config if name not in given]
            self.set_defaults_with_config(**config)
            place = arguments.index("--config")
            del arguments[place : place + 2]
        *parsed, left = self.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
        if left:
            raise ValueError(stray(self.command, left))
        values = {name: value for each in parsed for name, value in vars(each).items()}
        self.given |= {name: plain(values[name]) for name in given if name in values}
        self.given = without_secrets(self.given)
        return tuple(parsed)

    def _check_known(self, noun: str, names: list[str], known: list[str], where: str = "") -> None:
        for name in names:
            if name not in known:
                nearest = get_close_matches(name, known, n=1)
                hint = f" Did you mean {nearest[0]}?" if nearest else ""
                raise ValueError(f"`{self.prog}` has no {noun} {name!r}{where}.{hint}")


def _of_config(option: str, value: Any, kind: Any, is_list: bool) -> Any:
    """The value of an option in a config, as its dataclass has it. argparse itself looks at texts only.

    Args:
        option: the file and the name, for messages.
        value: of YAML.
        kind: the annotation of the dataclass's field.
        is_list: whether the command line takes several values; then one in the config is a list of one.

    Raises:
        ValueError: for a value of another kind.
    """
    kinds = get_args(kind) if get_origin(kind) in UNIONS else (kind,)
    if value is None:
        return None
    if is_list:
        of_list = [part for each in kinds if get_origin(each) is list for part in get_args(each)]
        return [_one_of_config(option, part, of_list) for part in (value if isinstance(value, list) else [value])]
    if not isinstance(value, list | dict):
        return _one_of_config(option, value, kinds)
    if not {get_origin(each) or each for each in kinds} & {type(value), Any}:
        noun = "number" if {int, float} & set(kinds) else "single value"
        raise ValueError(f"{option} must be a {noun}; it is {value!r:.100}.")
    return value


def _one_of_config(option: str, value: Any, kinds: Sequence[Any]) -> Any:
    if isinstance(value, str) and value.lower() in ("none", "null") and NoneType in kinds and str not in kinds:
        return None
    choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    if choices and value not in choices:
        quoted = "" if isinstance(value, str) else " (a text that YAML takes for something else stands in quotes)"
        raise ValueError(f"{option} must be one of {', '.join(map(str, choices))}; it is {value!r:.100}{quoted}.")
    if str in kinds and not {int, float, bool} & set(kinds) and not isinstance(value, str):
        raise ValueError(
            f"{option} must be a text, in quotes where YAML takes it for something else; it is {value!r:.100}."
        )
    if str in kinds or not {int, float} & set(kinds):
        return value
    whole = float not in kinds
    try:
        number = float(value)
        fits = not isinstance(value, bool) and (number.is_integer() or not whole)
    except (TypeError, ValueError, OverflowError):
        fits = False
    if not fits:
        raise ValueError(f"{option} must be a {'whole ' if whole else ''}number; it is {value!r:.100}.")
    if whole:
        return value if isinstance(value, int) else int(number)
    return number if isinstance(value, str) else value


def stray(command: str, values: Sequence[str]) -> str:
    """The sentence about values that follow no option's name."""
    value, hint = values[0], ""
    if command == "predict":
        hint = f" Did you mean --{'model' if Path(value).is_dir() else 'images'} {value}?"
    elif command in ("mle", "tune", "eval", "analyze"):
        hint = f" Did you mean --model {value}?"
    return f"`vision-rl {command}` has no place for {value!r}: a value follows the name of its option.{hint}"


def config_for(command: str, arguments: Sequence[str]) -> tuple[dict[str, Any], bool]:
    """The options that a command takes from its `--config`, and whether this is one of its own.

    Those that look at a model also take the config of a training: its data, and its output as their model, with the model
    that it started from as what was `before`.
    """
    content = read_config(arguments)
    made_for, of_eval = content.pop("command", command), content.pop("eval", {})
    if made_for == command:
        return content, True
    if command not in LOOKING or made_for == "stage1":
        raise ValueError(
            f"{config_path(arguments)} is the config of a `vision-rl {made_for}`, not of a `vision-rl {command}`."
        )
    not_of_looking = ("model", "model_revision", "output_dir", *PER_RUN)
    of_run = {key: value for key, value in content.items() if key not in not_of_looking}
    models = {"before": content.get("model"), "before_revision": content.get("model_revision")}
    folder = content.get("output_dir") or default_output_dir(made_for, content.get("task"))
    if folder is None and not any(argument.partition("=")[0] == "--model" for argument in arguments):
        raise ValueError(
            f"{config_path(arguments)} says neither output_dir nor task, so that the folder of its model is not known: add "
            "output_dir to it, or give --model."
        )
    return {**of_run, **models, **({} if folder is None else {"model": folder}), **of_eval}, False


def default_output_dir(command: str, task: str | None) -> str | None:
    """Where a training writes that is told nowhere else; None where its task is not named."""
    return None if task is None else f"runs/{Path(task).stem}-{command}"


def with_home(name: str, value: Any) -> Any:
    """The value of an option, with the home directory in place of a leading `~` where it names folders or files."""
    if isinstance(value, list):
        return [with_home(name, each) for each in value]
    is_path = name in PATHS or name.endswith(PATH_ENDINGS)
    return os.path.expanduser(value) if is_path and isinstance(value, str) else value


def arguments_with_home(arguments: Iterable[str]) -> list[str]:
    """The arguments of a command as a shell would have them that knows `--name=~/folder` and quoted `'~/*.png'`."""
    expanded: list[str] = []
    name = "config"  # what is in front of all options names folders and files
    for argument in arguments:
        if argument.startswith("--"):
            option, equals, value = argument.partition("=")
            name = option[2:].replace("-", "_")
            expanded.append(f"{option}={with_home(name, value)}" if equals else argument)
        else:
            expanded.append(with_home(name, argument))
    return expanded


def value_of(command: str, arguments: Sequence[str], name: str) -> Any:
    """What a command line or its config says of one option, before the command's parser can be made; else None."""
    for place, argument in enumerate(arguments):
        if argument == f"--{name}" and place + 1 < len(arguments):
            return arguments[place + 1]
        if argument.startswith(f"--{name}="):
            return argument.partition("=")[2]
    return config_for(command, arguments)[0].get(name)


def read_config(arguments: Sequence[str]) -> dict[str, Any]:
    """The content of the `--config`; empty without one."""
    path = config_path(arguments)
    if path is None:
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ) as error:  # ValueError: no text, or a number of thousands of digits
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ValueError(f"{path} holds no options: it must be YAML of the form `name: value`.")
    for name, kind in {
        "command": str,
        "task": str | None,
        "model": str | None,
        "output_dir": str | None,
        "env": dict,
        "eval": dict,
    }.items():
        if name in content and not isinstance(content[name], kind):
            raise ValueError(f"{path}: the option `{name}` cannot be {content[name]!r:.100}.")
    of_eval = {name: with_home(name, value) for name, value in content.get("eval", {}).items()}
    content = {name: with_home(name, value) for name, value in content.items()}
    return content | {"eval": of_eval} if "eval" in content else content


def config_path(arguments: Sequence[str]) -> Path | None:
    """The file of the `--config`: its path, or a recipe of the package by its name."""
    if "--config" not in arguments:
        return None
    place = list(arguments).index("--config") + 1
    if place == len(arguments):
        raise ValueError("--config needs a file, or the name of a recipe.")
    return package_file(arguments[place], "recipes", "recipe")


def package_file(name_or_path: str, folder: str, noun: str) -> Path:
    """A file by its path, or one that is in the package by its name.

    Raises:
        FileNotFoundError: for neither, with the names there are.
    """
    if Path(name_or_path).is_file():
        return Path(name_or_path)
    there = {path.stem: path for path in _yaml_files(folder)}
    if name_or_path not in there:
        nearest = get_close_matches(name_or_path, there, n=1)
        hint = f" Did you mean {nearest[0]}?" if nearest else ""
        raise FileNotFoundError(
            f"{name_or_path} is neither a file nor a {noun}.{hint} There are {', '.join(sorted(there))}."
        )
    return there[name_or_path]


def recipe_files() -> list[Path]:
    """The recipes of the package."""
    return _yaml_files("recipes")


def _yaml_files(folder: str) -> list[Path]:
    paths = [Path(str(file)) for file in files("vision_rl").joinpath(folder).iterdir()]
    return sorted(path for path in paths if path.suffix == ".yaml")

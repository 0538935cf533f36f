"""Runs a Hydra entry point so that bad input gives one clear line instead of a stack trace."""

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from backend.errors import TreebenchError
from backend.ranks import num_ranks
from backend.registry import suggestion
from runners.console import console
from runners.measured import register_resolver
from runners.plugins import plugin_folders, use_plugins


def run_hydra(task: Callable[[DictConfig], None], config_path: str, config_name: str) -> None:
    """Like `hydra.main`, with `plugins=FOLDER` and one-line errors; exits with 2 if the config cannot be composed."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise instead of printing; the line below is ours
    register_resolver()
    Sweeper.validate_batch_is_legal = _composed_later
    try:
        if num_ranks() > 1 and config_name != "benchmark":
            raise TreebenchError("only runners.benchmark runs in several processes: start this without torchrun")
        use_plugins(sys.argv)
        hydra.main(config_path=config_path, config_name=config_name, version_base="1.3")(task)()
    except (HydraException, OmegaConfBaseException, TreebenchError) as error:
        unknown = re.search(r"Could not override '([^']*)'", str(error))
        line = unknown_option(unknown[1], Path(config_path), config_name) if unknown else one_line(error)
        sys.stderr.write(f"error: {line}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; what was measured so far is kept\n")
        sys.exit(130)


def run_or_explain(task: Callable[[DictConfig], object], config_path: str, config_name: str) -> None:
    """`run_hydra` for a command that is one task: what goes wrong within it is a line too, and exit status 2."""

    def explained(cfg: DictConfig) -> None:
        try:
            task(cfg)
        except (OmegaConfBaseException, TreebenchError) as error:
            console.print(f"failed: {one_line(error)}", style="red")
            sys.exit(2)

    run_hydra(explained, config_path, config_name)


def check_counts(config: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuse settings that are no whole numbers of at least 1."""
    for name in names:
        if not isinstance(config[name], int) or config[name] < 1:
            raise TreebenchError(f"{name} is {config[name]!r}; it must be a whole number of at least 1")


def _composed_later(self: Sweeper, batch: Sequence[Sequence[str]]) -> None:
    """Hydra composes every point of a sweep twice, to find errors early; here all are composed before any starts."""


def one_line(error: BaseException) -> str:
    """Hydra's and OmegaConf's messages in one line, with a suggestion for a misspelt name."""
    text = str(error)
    if found := re.search(r"Could not find '(\w+)/([^']*)'", text):
        group, name = found.groups()
        options = re.findall(r"^\t(\S+)$", text, re.MULTILINE)
        return f"unknown {group} {name!r}{suggestion(name, options)}; choose one of: {', '.join(options)}"
    if found := re.search(r"Missing mandatory value: .*full_key: (\S+)", text, re.DOTALL):
        return f"{found[1]} is not set: give it a value on the command line, {found[1]}=..."
    return " ".join(text.split())


def unknown_option(option: str, conf: Path, config_name: str) -> str:
    """The line for an option that does not exist: the nearest that does, or what its group takes."""
    table = _mapping(conf / f"{config_name}.yaml")
    choices = [default for default in table.pop("defaults", []) if isinstance(default, dict)]
    groups = {axis: choice for default in choices for axis, choice in default.items() if "/" not in axis}
    group, _, name = option.rpartition(".")
    if group in groups:
        given = [argument.partition("=")[2] for argument in sys.argv if argument.startswith(f"{group}=")]
        choice = (given[-1] if given else str(groups[group])).split(",")[0]
        places = [*plugin_folders(sys.argv), conf]
        known = [key for place in places for key in _mapping(place / group / f"{choice}.yaml") if key != "defaults"]
        return f"{group}={choice} has no option {name!r}{suggestion(name, known)}; it has {', '.join(known)}"
    section = table.get(group) if group else {**table, **groups}
    known = list(section) if isinstance(section, dict) else []
    there = f"; {group} has {', '.join(known)}" if group and known else "; --help lists what there is"
    return f"there is no option {option!r}{suggestion(name, known)}{there}"


def _mapping(file: Path) -> dict[str, Any]:
    config = OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else {}
    return {str(key): value for key, value in config.items()} if isinstance(config, dict) else {}

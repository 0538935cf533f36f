"""Runs a Hydra entry point so that bad input gives one clear line instead of a stack trace."""

import os
import re
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from transformers.utils.logging import disable_progress_bar

from backend.errors import TreebenchError
from backend.registry import suggestion


def run_hydra(task: Callable[[DictConfig], None], config_path: str, config_name: str) -> None:
    """Like `hydra.main`, with `plugins=FOLDER` and one-line errors; exits with 2 if the config cannot be composed."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise instead of printing; the line below is ours
    disable_progress_bar()  # transformers' own bars while weights load
    try:
        use_plugins(sys.argv)
        hydra.main(config_path=config_path, config_name=config_name, version_base="1.3")(task)()
    except (HydraException, OmegaConfBaseException, TreebenchError) as error:
        sys.stderr.write(f"error: {one_line(error)}\n")
        sys.exit(2)


def use_plugins(argv: list[str]) -> None:
    """`plugins=FOLDER` puts FOLDER's YAML groups on the config search path and imports its Python files."""
    for argument in argv[1:]:
        if argument.startswith("plugins="):
            load_plugins(Path(argument.removeprefix("plugins=")))
            argv.append(f"hydra.searchpath=[file://{Path(argument.removeprefix('plugins=')).resolve()}]")


def load_plugins(folder: Path) -> None:
    if not folder.is_dir():
        raise TreebenchError(f"plugins={folder}: no such folder")
    for file in sorted(folder.glob("*.py")):
        spec = spec_from_file_location(f"treebench_plugin_{file.stem}", file)
        if spec is None or spec.loader is None:
            raise TreebenchError(f"plugins: {file} cannot be imported")
        module = module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)


def one_line(error: BaseException) -> str:
    """Hydra's and OmegaConf's messages in one line, with a suggestion for a misspelt name."""
    text = str(error)
    if found := re.search(r"Could not find '(\w+)/([^']*)'", text):
        group, name = found.groups()
        options = re.findall(r"^\t(\S+)$", text, re.MULTILINE)
        return f"unknown {group} {name!r}{suggestion(name, options)}; choose one of: {', '.join(options)}"
    if found := re.search(r"Could not override '([^']*)'", text):
        return f"there is no option {found[1]!r}; --help lists what there is, +{found[1]}=... adds a new one"
    if found := re.search(r"Missing mandatory value: .*full_key: (\S+)", text, re.DOTALL):
        return f"{found[1]} is not set: give it a value on the command line, {found[1]}=..."
    return " ".join(text.split())

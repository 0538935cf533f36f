"""Plug-ins: a folder of Python files that register algorithms, and of YAML groups beside them."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from backend.errors import TreebenchError

_loaded: set[Path] = set()


def plugin_folders(argv: list[str]) -> list[Path]:
    given = [argument.partition("=")[2] for argument in argv[1:] if argument.startswith("plugins=")]
    return [Path(folder).expanduser() for folder in given if folder not in ("", "null")]


def use_plugins(argv: list[str]) -> None:
    """`plugins=FOLDER` puts FOLDER's YAML groups on the config search path and imports its Python files."""
    folders = plugin_folders(argv)
    for folder in folders:
        load_plugins(folder)
    if folders:
        argv.append(f"hydra.searchpath=[{', '.join(repr(f'file://{folder.resolve()}') for folder in folders)}]")


def load_once(folder: Path) -> None:
    """What a worker does with each point's `plugins`: the files are imported at the first."""
    if folder.resolve() not in _loaded:
        load_plugins(folder)


def load_plugins(folder: Path) -> None:
    if not folder.is_dir():
        raise TreebenchError(f"plugins={folder}: no such folder")
    for file in sorted(folder.glob("*.py")):
        spec = spec_from_file_location(f"treebench_plugin_{file.stem}", file)
        if spec is None or spec.loader is None:
            raise TreebenchError(f"plugins: {file} cannot be imported")
        module = module_from_spec(spec)
        sys.modules[spec.name] = module
        try:
            spec.loader.exec_module(module)
        except (SyntaxError, ImportError, AttributeError, NameError, TypeError, ValueError) as error:
            raise TreebenchError(f"plugins: {file} cannot be imported: {type(error).__name__}: {error}") from error
    _loaded.add(folder.resolve())

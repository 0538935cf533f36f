"""Safetensors files: written in one piece, read with one clear line for what is wrong with them."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from backend.errors import TreebenchError


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Replace the file at once; a reader sees the old one or the new one."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".writing-", delete=False) as scratch:
        name = Path(scratch.name)
    try:
        whole = {key: tensor.detach().contiguous() for key, tensor in tensors.items()}
        save_file(whole, name, metadata={"format": "pt"} | (metadata or {}))
        name.chmod(0o644)
        os.replace(name, path)
    finally:
        name.unlink(missing_ok=True)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise TreebenchError(f"there is no file {path}") from error
    except (SafetensorError, OSError) as error:
        raise TreebenchError(f"{path} is damaged ({error}): download or write it again") from error


def load_exactly(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Copy into the module's parameters and buffers; missing, unknown or misshapen ones are refused by name."""
    wanted = module.state_dict()
    for problem, names in (("lacks", wanted.keys() - tensors.keys()), ("has unknown", tensors.keys() - wanted.keys())):
        if names:
            raise TreebenchError(f"{what} {problem} {sorted(names)[0]} ({len(names)} in all): it is of another layout")
    for name, tensor in sorted(tensors.items()):
        if tensor.shape != wanted[name].shape:
            shapes = f"{tuple(tensor.shape)}, the configuration says {tuple(wanted[name].shape)}"
            raise TreebenchError(f"{what}: {name} has shape {shapes}")
    module.load_state_dict(dict(tensors))

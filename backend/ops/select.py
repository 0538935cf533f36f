"""Chooses the implementation of the operations: by name, or by device."""

import importlib
from dataclasses import replace

import torch

from backend.errors import TreebenchError
from backend.matching import follow
from backend.ops import Ops, host
from backend.ops.reference import keep, tree_attention
from backend.rejection import walk_in_turn

CHOICES = ("auto", "torch", "triton", "flashinfer")


def _anything(dtype: torch.dtype, head_size: int) -> None:
    """The reference computes whatever torch computes."""


TORCH = Ops("torch", tree_attention, keep, follow, walk_in_turn, _anything)
HOST = replace(TORCH, follow=host.follow)


def create_ops(choice: str, device: torch.device) -> Ops:
    """`auto` takes Triton on a GPU and torch elsewhere, where it reads the tree on the host if that is the device."""
    if choice not in CHOICES:
        raise TreebenchError(f"backend.ops is {choice!r}; choose one of {', '.join(CHOICES)}")
    if choice == "auto" and device.type == "cpu":
        return HOST
    if choice == "auto":
        choice = "triton" if device.type == "cuda" else "torch"
    if choice == "torch":
        return TORCH
    return _flashinfer_ops(device) if choice == "flashinfer" else _triton_ops(device)


def _flashinfer_ops(device: torch.device) -> Ops:
    """Attention alone: FlashInfer has nothing for the other operations."""
    if device.type != "cuda":
        raise TreebenchError(f"backend.ops=flashinfer needs a CUDA GPU, this is {device.type}: use backend.ops=torch")
    try:
        module = importlib.import_module("backend.ops.flashinfer_attention")
    except ImportError as error:
        raise TreebenchError(
            f"backend.ops=flashinfer: {error}; pip install flashinfer-python, or use backend.ops=triton"
        ) from error
    kernels = _triton_ops(device)
    return replace(kernels, name="flashinfer", attention=module.tree_attention, check=module.check_shapes)


def _triton_ops(device: torch.device) -> Ops:
    """Imported only here: Triton is big, is not there on every platform, and may stay unused."""
    try:
        attention = importlib.import_module("backend.ops.triton_attention")
    except ModuleNotFoundError as error:
        raise TreebenchError(
            f"backend.ops=triton needs the package {error.name}: pip install triton, or use backend.ops=torch"
        ) from error
    importlib.import_module("backend.ops.launch").check_device(device)
    modules = (importlib.import_module(f"backend.ops.triton_{name}") for name in ("compact", "follow", "walk"))
    compact, following, walking = modules
    return Ops("triton", attention.tree_attention, compact.keep, following.follow, walking.walk, attention.check_shapes)

"""A second device that does not exist: its tensors compute on the CPU, and refuse to meet tensors of another device."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

FAR = torch.device(
    "meta"
)  # the only type besides the CPU that a CPU build of torch can index; a real one holds no numbers
COPIES = (torch.ops.aten.to, torch.ops.aten._to_copy, torch.ops.aten.copy_)


class FarTensor(Tensor):
    """Says that it lies on FAR; `near` holds its numbers."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> "FarTensor":
        layout = {"strides": near.stride(), "storage_offset": near.storage_offset(), "dtype": near.dtype}
        tensor = Tensor._make_wrapper_subclass(cls, near.shape, device=FAR, **layout)  # type: ignore[attr-defined]
        tensor.near = near
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} was called outside of TwoDevices")


class TwoDevices(TorchDispatchMode):
    """While it is on, FAR can be used like a GPU; an operation that mixes devices fails as it would there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        wanted = kwargs.pop("device", None)
        tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        devices = {tensor.device for tensor in tensors if tensor.dim() or isinstance(tensor, FarTensor)}
        if len(devices) > 1 and func.overloadpacket not in COPIES:
            raise RuntimeError(f"{func}: tensors on different devices: {', '.join(sorted(map(str, devices)))}")
        if wanted is not None:
            kwargs["device"] = torch.device("cpu") if wanted == FAR else wanted
        result = func(*tree_map(_near, args), **tree_map(_near, kwargs))
        if func._schema.is_mutable and result is _near(args[0]):
            return args[0]
        is_far = wanted == FAR if wanted is not None else FAR in devices
        if wanted is not None and tensors and result is _near(args[0]) and {wanted} != devices:
            result = result.clone()
        return tree_map(_far, result) if is_far else result


def _near(value: Any) -> Any:
    return value.near if isinstance(value, FarTensor) else value


def _far(value: Any) -> Any:
    return FarTensor(value) if isinstance(value, Tensor) else value

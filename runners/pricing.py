"""Which cost model a point uses: the table measured on this machine, or the roofline of a named device."""

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from algorithms.base import Drafter
from algorithms.registry import needs_costs
from backend.costs import CostModel, read_table
from backend.drafters.quantized import Part
from backend.drafters.self_draft import SelfDraft
from backend.errors import TreebenchError
from backend.model import TreeModel
from backend.placement import parallel_of
from backend.ranks import num_ranks
from backend.roofline import Device, Roofline, Shape
from backend.targets import Target, is_shape_only
from runners.environment import cpu_name

BASES = ("measured", "projected")
COSTS = Path("results") / "costs"


def basis_of(config: Mapping[str, Any]) -> str:
    return config["device"].get("basis") or "measured"


def check_pricing(config: Mapping[str, Any]) -> None:
    """Refuse what cannot be timed or priced before anything is loaded."""
    device, basis = config["device"], basis_of(config)
    if basis not in BASES:
        raise TreebenchError(f"device.basis is {basis!r}: choose one of {', '.join(BASES)}")
    if device.get("roofline"):
        Device.of_options(device["roofline"], "device.roofline")
        if basis == "measured":
            raise TreebenchError(f"device {device['name']} is not here: its basis can only be projected")
    elif is_shape_only(config["target"]):
        raise TreebenchError(
            f"target {config['target']['name']} is a shape that can be projected, not run: choose a named device, such "
            "as device=h100"
        )
    if basis == "measured" and num_ranks() > 1 and needs_costs(name := config["algorithm"]["name"]):
        raise TreebenchError(f"algorithm {name} weighs costs, and runners.calibrate measures none of a sharded target")
    if config["target"].get("kind") == "synthetic" and config["temperature"] != 0:
        raise TreebenchError("a synthetic target decodes greedily only: leave temperature at 0")


def cost_model(config: Mapping[str, Any], target: Target, drafter: Drafter | None) -> CostModel | None:
    """None where nobody asks for it: a measured point whose algorithm does not weigh costs."""
    roofline = config["device"].get("roofline")
    if roofline:
        device = Device.of_options(roofline, "device.roofline")
        return Roofline(device, config["dtype"], *_shapes(config["target"], target, drafter))
    name = config["algorithm"]["name"]
    if not needs_costs(name) and basis_of(config) == "measured":
        return None
    part = (drafter.name, drafter_options(config)) if drafter else ("none", {})
    return read_table(table_path(config), identity(config), *part, command=calibrate_command(config))


def _shapes(config: Mapping[str, Any], target: Target, drafter: Drafter | None) -> tuple[Shape, Shape | None]:
    """The configured shapes, or those of the models that run here."""
    if is_shape_only(config):
        shape = Shape.of_options(config["shape"], "target.shape")
        if isinstance(drafter, SelfDraft):
            return shape, _of_self_draft(drafter, shape)
        return shape, Shape.of_options(config["draft"], "target.draft") if config["draft"] else None
    assert isinstance(target, TreeModel)
    if drafter is not None and hasattr(drafter, "cache") and not isinstance(drafter, TreeModel):
        raise TreebenchError(
            f"what drafter {drafter.name} costs on another device cannot be told: choose a target with a "
            "`draft` shape, such as target=llama3_8b"
        )
    shape = Shape.of_config(target.model.config)
    if isinstance(drafter, SelfDraft):
        return shape, _of_self_draft(drafter, shape)
    return shape, Shape.of_config(drafter.model.config) if isinstance(drafter, TreeModel) else None


def _of_self_draft(drafter: SelfDraft, shape: Shape) -> Shape:
    """As large a part of the layers as it uses of its target's here, and weights as much smaller as they are here."""
    whole, _ = _layers_and_head(drafter.target.model)
    used, head = _layers_and_head(drafter.model)
    numel, stored = used.numel + head.numel, used.stored_bytes + head.stored_bytes
    layers = max(1, round(shape.layers * used.numel / whole.numel))
    return replace(shape, layers=layers, compression=stored / (numel * drafter.target.model.dtype.itemsize))


class _Weights(NamedTuple):
    numel: int
    stored_bytes: int | float


def _layers_and_head(model: Any) -> tuple[_Weights, _Weights]:
    """Of the linear modules in use; skipped ones are none of a view's."""
    top, layers, head = model.get_output_embeddings(), [], []
    for module in model.modules():
        if isinstance(module, Part):
            (head if module is top else layers).append((module.stored.numel, module.stored.bits / 8))
        elif isinstance(module, torch.nn.Linear):
            (head if module is top else layers).append((module.weight.numel(), module.weight.dtype.itemsize))
    sums = [_Weights(sum(n for n, _ in part), sum(n * size for n, size in part)) for part in (layers, head)]
    return sums[0], sums[1]


def drafter_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a cost table keeps of a drafter's settings: all but its name."""
    return {key: value for key, value in config["drafter"].items() if key not in ("name", "kind")}


def short_name(group: Mapping[str, Any]) -> str:
    """What records call a target or drafter: its name, or the last part of its path."""
    return group.get("name") or str(group.get("path") or group["kind"]).rstrip("/").split("/")[-1]


def target_name(config: Mapping[str, Any]) -> str:
    target = config["target"]
    name = short_name(target)
    return name if (parallel := parallel_of(target)) == "none" else f"{name}-{parallel}"


def table_path(config: Mapping[str, Any]) -> Path:
    """`device.costs`, or results/costs/DEVICE-TARGET-DTYPE.json."""
    given = config["device"].get("costs")
    return Path(given) if given else COSTS / f"{config['device']['name']}-{target_name(config)}-{config['dtype']}.json"


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a table must agree with, as in `backend.costs.IDENTITY`."""
    gpu = config["device"]["torch_device"].startswith("cuda") and torch.cuda.is_available()
    return {
        "device": config["device"]["name"],
        "device_name": torch.cuda.get_device_name() if gpu else cpu_name(),
        "threads": config["device"]["threads"] or torch.get_num_threads(),
        "target": target_name(config),
        "dtype": config["dtype"],
        "torch": torch.__version__.partition("+")[0],
    }


def calibrate_command(config: Mapping[str, Any]) -> str:
    """The command line that measures the table this config needs."""
    settings = [f"device={config['device']['name']}", f"dtype={config['dtype']}"]
    settings += _drafter_choice(config["drafter"])
    if config["target"].get("path"):
        settings += ["target=hf", f"target.path={shlex.quote(str(config['target']['path']))}"]
        parallel = parallel_of(config["target"])
        settings += [f"target.parallel={parallel}"] if parallel != "none" else []
    if config["device"].get("costs"):
        settings.append(f"device.costs={shlex.quote(str(config['device']['costs']))}")
    return " ".join(["python -m runners.calibrate", *settings])


def _drafter_choice(drafter: Mapping[str, Any]) -> list[str]:
    """As overrides; a drafter that is loaded from somewhere need not have a name of its own."""
    if drafter["kind"] == "none":
        return []
    path = [f"drafter.path={shlex.quote(str(drafter['path']))}"] if drafter.get("path") else []
    return [f"drafter={drafter.get('name') or drafter['kind']}", *path]

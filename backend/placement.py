"""Where the weights of a target lie: on one device, on all that this process sees, or a shard in each of several.

Layers are placed by accelerate, shards are cut by transformers' own tensor-parallel plan of the architecture.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from backend.errors import TreebenchError
from backend.memory import OutOfMemory
from backend.ranks import join, num_ranks

CHOICES = ("none", "device_map", "tensor")


def parallel_of(target: Mapping[str, Any]) -> str:
    """One of `CHOICES`, unless nothing has checked it yet; targets that cannot be split say nothing."""
    return target.get("parallel", "none")


def check_parallel(target: Mapping[str, Any]) -> None:
    """Refuse a placement that is unknown, impossible for this kind of target, or not what torchrun was used for."""
    parallel = parallel_of(target)
    if parallel not in CHOICES:
        raise TreebenchError(f"target.parallel is {parallel!r}: choose one of {', '.join(CHOICES)}")
    if parallel != "none" and target["kind"] != "hf":
        raise TreebenchError(f"target.parallel={parallel} needs safetensors (target=hf): GGUF weights are not split")
    if parallel == "tensor" and num_ranks() == 1:
        raise TreebenchError(
            "target.parallel=tensor needs a process per shard: start the command with "
            "`torchrun --nproc-per-node 2 -m runners.benchmark ...`"
        )
    if parallel != "tensor" and num_ranks() > 1:
        raise TreebenchError(
            f"torchrun started {num_ranks()} processes, which would all do the same: set target.parallel=tensor"
        )


def load_options(parallel: str, folder: Path, device: str) -> dict[str, Any]:
    """What `from_pretrained` is told. `tensor` meets the other ranks, after what its config refuses."""
    if parallel == "device_map":
        if importlib.util.find_spec("accelerate") is None:
            raise TreebenchError("target.parallel=device_map needs accelerate: pip install -e '.[large]'")
        return {"device_map": device if device == "cpu" and torch.cuda.is_available() else "auto"}
    if parallel == "tensor":
        if device == "cpu" and torch.cuda.is_available():
            raise TreebenchError(
                "target.parallel=tensor takes the GPUs that it sees: use device=cuda, or hide them with "
                "CUDA_VISIBLE_DEVICES="
            )
        check_shards(AutoConfig.from_pretrained(folder, trust_remote_code=False), num_ranks())
        from transformers.distributed.configuration_utils import DistributedConfig  # takes a while to import

        join()
        return {"distributed_config": DistributedConfig(tp_size=num_ranks(), tp_plan="auto")}
    return {}


def check_shards(config: Any, shards: int) -> None:
    """Refuse an architecture without a plan, and heads that cannot be dealt out evenly."""
    text = config.get_text_config()
    if not getattr(text, "base_model_tp_plan", None):
        raise TreebenchError(
            f"the architecture {config.model_type!r} has no tensor-parallel plan in transformers: "
            "use target.parallel=device_map"
        )
    for name in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(text, name, None) or shards
        if heads % shards:
            raise TreebenchError(
                f"{name} is {heads}, which {shards} processes cannot share evenly: start another number"
            )


def placed(model: PreTrainedModel, parallel: str, device: str) -> PreTrainedModel:
    """The model where it is to run; raises OutOfMemory if a part of it was left on the host or on disk."""
    if parallel == "none":
        return model.to(device)  # type: ignore[arg-type]
    places = [str(place) for place in (getattr(model, "hf_device_map", None) or {}).values()]
    waiting = [place for place in places if place in ("cpu", "disk")]
    if waiting and (len(waiting) < len(places) or "disk" in waiting):
        raise OutOfMemory(
            f"the target does not fit on the devices here: {len(waiting)} of its {len(places)} parts were left on "
            f"{waiting[-1]}, and copying them is all that would be timed; use dtype=bfloat16 or more GPUs"
        )
    return model


def is_sharded(model: Any) -> bool:
    """Whether this process holds a part of each matrix only."""
    return (getattr(model, "tp_size", None) or 1) > 1

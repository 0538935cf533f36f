"""What can be a target: a model, the shape of one that does not run here, or a law over tokens."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from backend import loading
from backend.errors import TreebenchError
from backend.loading import LoadedModel
from backend.model import TreeModel
from backend.ops.select import create_ops
from backend.roofline import Shape
from backend.synthetic import SyntheticTarget, byte_tokenizer, law_of
from backend.tree import Accepted, TokenTree

SHAPED = {  # kinds that only a projection can use, and their keys
    "stand_in": ("name", "kind", "shape", "draft", "runs"),
    "synthetic": ("name", "kind", "shape", "draft", "law"),
}


@runtime_checkable
class Target(Protocol):
    """What the decode loop verifies with; `backend.model.TreeModel` says what each method does."""

    @property
    def device(self) -> torch.device: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def max_context(self) -> int: ...

    def allocate(self, batch: int, capacity: int) -> None: ...

    def prefill(self, prompts: Int[Tensor, "batch prompt"], lengths: Int[Tensor, " batch"]) -> None: ...

    def expand(self, tree: TokenTree, nodes: Int[Tensor, "batch new"]) -> Float[Tensor, "batch new vocab"]: ...

    def commit(self, tree: TokenTree, accepted: Accepted) -> None: ...

    def score_text(self, tokens: Int[Tensor, "batch text"], last: int) -> Float[Tensor, "batch last vocab"]: ...

    def settle(self) -> None: ...


def check_target(config: Mapping[str, Any]) -> None:
    """Refuse an unknown kind, an unknown key or a missing value."""
    keys = SHAPED.get(config.get("kind", ""))
    if keys is None:
        return loading.check_target(config)
    if wrong := sorted(set(config) ^ set(keys)):
        raise TreebenchError(f"target of kind {config['kind']} takes {', '.join(keys)}: check {wrong[0]!r}")
    Shape.of_options(config["shape"], "target.shape")
    if config["draft"] is not None:
        Shape.of_options(config["draft"], "target.draft")
    if config["kind"] == "synthetic":
        law_of(config["law"])
    else:
        check_target(config["runs"])
    return None


def is_shape_only(config: Mapping[str, Any]) -> bool:
    return config.get("kind") in SHAPED


def build_target(config: Mapping[str, Any], dtype: str, device: str, ops: str = "auto") -> tuple[LoadedModel, Target]:
    """The target that runs here, and its tokenizer. A stand-in runs the model that it names."""
    if config.get("kind") == "stand_in":
        return build_target(config["runs"], dtype, device, ops)
    if config.get("kind") == "synthetic":
        loaded = LoadedModel(None, byte_tokenizer(), config["name"], f"law {dict(config['law'])}", ())
        return loaded, SyntheticTarget(law_of(config["law"]))
    loaded = loading.load_target(config, dtype, device)
    return loaded, TreeModel(loaded.model, ops=create_ops(ops, loaded.model.device))

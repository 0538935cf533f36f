"""Builds the parts of one benchmark point from its config."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from algorithms.base import Drafter, TreeAlgorithm
from algorithms.registry import ALGORITHMS, create
from backend.acceptance import AcceptanceRule, check_compatible, create_rule, default_rule
from backend.drafters.registry import DRAFTERS, create_drafter
from backend.loading import LoadedModel, check_target, load_target
from backend.model import TreeModel
from backend.sampling import Sampler
from backend.timing import Stopwatch
from backend.tree import Proposal, TokenTree
from runners.decoding import Decoder, Limits


@dataclass(frozen=True)
class Point:
    """A configured comparison: `method` against plain decoding on the same target."""

    loaded: LoadedModel
    baseline: Decoder
    method: Decoder
    limits: Limits


def check(config: Mapping[str, Any]) -> None:
    """Refuse unknown names and options before anything is loaded."""
    check_target(config["target"])
    name, options = _split(config["algorithm"], "name")
    ALGORITHMS.check(name, options)
    kind, options = _split(config["drafter"], "kind", "name")
    if kind != "none":
        DRAFTERS.check(kind, options)


def build(config: Mapping[str, Any]) -> Point:
    """Load the target and put the two decoders on it."""
    check(config)
    if config["device"]["threads"]:
        torch.set_num_threads(config["device"]["threads"])
    loaded = load_target(config["target"], config["dtype"], config["device"]["torch_device"])
    target = TreeModel(loaded.model)
    kind, options = _split(config["drafter"], "kind", "name")
    drafter = create_drafter(kind, target, loaded, options)
    algorithm = create_algorithm(config, drafter)
    sampler = Sampler(config["temperature"], config["top_k"], config["top_p"])
    rule = rule_for(config, algorithm.proposal)
    plain = create("autoregressive", None, {})
    plain_rule = create_rule(default_rule(Proposal.DETERMINISTIC, config["temperature"]))
    limits = Limits(
        config["max_new_tokens"] or config["task"]["max_new_tokens"],
        loaded.eos_token_ids,
        config["backend"]["tree_slots"],
    )
    return Point(
        loaded,
        baseline=Decoder(target, plain, None, plain_rule, sampler, config["seed"]),
        method=Decoder(target, algorithm, drafter, rule, sampler, config["seed"]),
        limits=limits,
    )


def create_algorithm(config: Mapping[str, Any], drafter: Drafter | None) -> TreeAlgorithm:
    name, options = _split(config["algorithm"], "name")
    return create(name, drafter, options)


def rule_for(config: Mapping[str, Any], proposal: Proposal) -> AcceptanceRule:
    """The configured acceptance rule, checked against how the algorithm makes children."""
    name = config["acceptance"]
    rule = create_rule(default_rule(proposal, config["temperature"]) if name == "auto" else name)
    check_compatible(rule, proposal, config["temperature"])
    return rule


def with_stage_clock(config: Mapping[str, Any], method: Decoder, clock: Stopwatch) -> Decoder:
    """The method once more, with its drafter and all model forwards on the clock until `stop_stage_clock`."""
    _set_clock(method, clock)
    if method.drafter is None:
        return method
    drafter: Any = ClockedDrafter(method.drafter, clock)
    return replace(method, algorithm=create_algorithm(config, drafter), drafter=drafter)


def stop_stage_clock(method: Decoder) -> None:
    _set_clock(method, Stopwatch(method.target.device))


def _set_clock(method: Decoder, clock: Stopwatch) -> None:
    for model in (method.target, method.drafter):
        if isinstance(model, TreeModel):
            model.clock = clock


class ClockedDrafter:
    """A drafter whose expansions are timed as the stage `draft`."""

    def __init__(self, drafter: Drafter, clock: Stopwatch) -> None:
        self.drafter = drafter
        self.clock = clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self.drafter, name)

    def expand(self, tree: TokenTree, nodes: torch.Tensor) -> torch.Tensor:
        with self.clock.stage("draft"):
            return self.drafter.expand(tree, nodes)


def _split(group: Mapping[str, Any], *keys: str) -> tuple[Any, dict[str, Any]]:
    """The first of `keys`, and everything that is none of them."""
    return group[keys[0]], {key: value for key, value in group.items() if key not in keys}

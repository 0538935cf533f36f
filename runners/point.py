"""Builds the parts of one benchmark point from its config."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from algorithms.base import Drafter, TreeAlgorithm
from algorithms.registry import ALGORITHMS, create, needs_drafter
from backend.acceptance import AcceptanceRule, check_compatible, create_rule, default_rule
from backend.costs import CostModel
from backend.drafters.registry import DRAFTERS, clocked_models, create_drafter
from backend.errors import TreebenchError
from backend.graphs import Graphs, capture_on_gpu
from backend.loading import DTYPES, LoadedModel
from backend.model import TreeModel
from backend.ops.select import CHOICES, create_ops
from backend.placement import parallel_of
from backend.registry import suggestion
from backend.sampling import Sampler
from backend.targets import build_target, check_target
from backend.timing import Stopwatch
from backend.tree import Proposal
from runners.decoding import Decoder, Limits
from runners.pricing import basis_of, check_pricing, cost_model
from runners.projection import Ledger, ProjectedDrafter, VirtualClock, projected
from runners.prompts import check_task

GROUPS = ("target", "drafter", "algorithm", "task", "device", "tracker", "launch")
WHOLE_NUMBERS = {  # smallest value
    "batch_size": 1,
    "num_prompts": 1,
    "max_new_tokens": 1,
    "repeats": 1,
    "stage_prompts": 0,
    "tree_prompts": 0,
    "control_prompts": 0,
    "seed": 0,
    "top_k": 1,
    "backend.tree_slots": 1,
    "task.max_new_tokens": 1,
    "device.threads": 1,
}
NUMBERS = {"temperature": 0, "top_p": 0}
MAY_BE_NULL = {"num_prompts", "max_new_tokens", "top_k", "top_p", "device.threads"}
OTHERS = {"output", "dtype", "acceptance", "acceptance_options", "force", "retry", "plugins", "backend"}


@dataclass(frozen=True)
class Point:
    """A configured comparison: `method` against plain decoding on the same target."""

    loaded: LoadedModel
    baseline: Decoder
    method: Decoder
    limits: Limits
    costs: CostModel | None = None
    ledger: Ledger | None = None  # of a projection: time is read from it

    def clock(self, stages: bool = False) -> Stopwatch:
        """A clock of its own for every run; the other device's if time is projected."""
        return VirtualClock(self.ledger, stages) if self.ledger else Stopwatch(self.method.target.device, stages)


def check(config: Mapping[str, Any]) -> None:
    """Refuse unknown names and options and values out of range before anything is loaded or written."""
    check_settings(config)
    check_target(config["target"])
    check_pricing(config)
    check_task(config["task"])
    name, options = _split("algorithm", config["algorithm"], "name")
    ALGORITHMS.check(name, options)
    kind, options = _split("drafter", config["drafter"], "kind", "name")
    if kind != "none":
        DRAFTERS.check(kind, options)
    elif needs_drafter(name):
        raise TreebenchError(f"algorithm {name} needs a drafter: choose one with drafter=NAME")
    if config["acceptance"] != "auto":
        _configured_rule(config)
    Sampler(config["temperature"], config["top_k"], config["top_p"])


def check_settings(config: Mapping[str, Any]) -> None:
    """Every setting that is not a part's own: known, of the right kind, in range."""
    known = {*GROUPS, *OTHERS, *WHOLE_NUMBERS, *NUMBERS}
    if unknown := sorted(set(config) - known):
        raise TreebenchError(f"there is no option {unknown[0]!r}{suggestion(unknown[0], known)}")
    for name, least in (WHOLE_NUMBERS | NUMBERS).items():
        group, _, key = name.rpartition(".")
        value = config[group].get(key) if group else config[key]
        kind = (int, "a whole number") if name in WHOLE_NUMBERS else ((int, float), "a number")
        fits = isinstance(value, kind[0]) and not isinstance(value, bool) and value >= least
        if not fits and not (value is None and name in MAY_BE_NULL):
            raise TreebenchError(f"{name} is {value!r}; it must be {kind[1]} of at least {least}")
    if config["dtype"] not in DTYPES:
        raise TreebenchError(f"dtype {config['dtype']!r} is not supported: choose one of {', '.join(DTYPES)}")
    if not isinstance(config["force"], bool):
        raise TreebenchError(f"force is {config['force']!r}; it must be true or false")
    check_backend(config["backend"], config["device"].get("torch_device"))
    if config["backend"]["graphs"] and parallel_of(config["target"]) != "none":
        raise TreebenchError("backend.graphs=true needs the whole target on one device: leave target.parallel at none")


def check_backend(backend: Mapping[str, Any], device: str) -> None:
    if backend["ops"] not in CHOICES:
        raise TreebenchError(f"backend.ops is {backend['ops']!r}; choose one of {', '.join(CHOICES)}")
    if not isinstance(backend["graphs"], bool):
        raise TreebenchError(f"backend.graphs is {backend['graphs']!r}; it must be true or false")
    if backend["graphs"] and (device != "cuda" or backend["ops"] not in ("auto", "triton")):
        raise TreebenchError("backend.graphs=true needs device=cuda and backend.ops=triton, or auto")


def use_threads(device: Mapping[str, Any]) -> None:
    """As many as its config says; without a number as many as torch takes by itself."""
    if device["threads"]:
        torch.set_num_threads(device["threads"])


def build(config: Mapping[str, Any]) -> Point:
    """Load the target and put the two decoders on it. An algorithm that drafts nothing gets no drafter."""
    use_threads(config["device"])
    use = config["backend"]["ops"]
    loaded, target = build_target(config["target"], config["dtype"], config["device"]["torch_device"], use)
    ops = create_ops(use, target.device)
    use_graphs(config, target)
    drafter: Any = None
    if needs_drafter(config["algorithm"]["name"]):
        kind, options = _split("drafter", config["drafter"], "kind", "name")
        drafter = create_drafter(kind, target, loaded, options)
        use_graphs(config, drafter)
    costs, ledger = cost_model(config, target, drafter), None
    if costs is not None and basis_of(config) == "projected":
        ledger = Ledger(costs)
        drafter = ProjectedDrafter(drafter, ledger) if drafter else None
    algorithm = create_algorithm(config, drafter, costs)
    sampler = Sampler(config["temperature"], config["top_k"], config["top_p"])
    rule = replace(rule_for(config, algorithm.proposal), ops=ops)
    plain = create("autoregressive", None, {})
    plain_rule = replace(create_rule(default_rule(Proposal.DETERMINISTIC, config["temperature"])), ops=ops)
    limits = Limits(
        config["max_new_tokens"] or config["task"]["max_new_tokens"],
        loaded.eos_token_ids,
        config["backend"]["tree_slots"],
    )
    baseline = Decoder(target, plain, None, plain_rule, sampler, config["seed"])
    method = Decoder(target, algorithm, drafter, rule, sampler, config["seed"])
    if ledger is not None:
        baseline, method = projected(baseline, ledger), projected(method, ledger)
    return Point(loaded, baseline, method, limits, costs, ledger)


def use_graphs(config: Mapping[str, Any], model: object) -> None:
    """Replay the forwards of a tree model as CUDA graphs, where the configuration asks for it."""
    if config["backend"]["graphs"] and isinstance(model, TreeModel):
        words = importlib.import_module("backend.ops.triton_bitmask").layout_words
        model.graphs = Graphs(words, capture_on_gpu)


def create_algorithm(config: Mapping[str, Any], drafter: Drafter | None, costs: CostModel | None) -> TreeAlgorithm:
    name, options = _split("algorithm", config["algorithm"], "name")
    return create(name, drafter, options, costs)


def rule_for(config: Mapping[str, Any], proposal: Proposal) -> AcceptanceRule:
    """The configured acceptance rule, checked against how the algorithm makes children."""
    auto = config["acceptance"] == "auto"
    rule = create_rule(default_rule(proposal, config["temperature"])) if auto else _configured_rule(config)
    check_compatible(rule, proposal, config["temperature"])
    return rule


def _configured_rule(config: Mapping[str, Any]) -> AcceptanceRule:
    options = {key: value for key, value in config["acceptance_options"].items() if value is not None}
    try:
        return create_rule(config["acceptance"], **options)
    except TreebenchError as error:
        raise TreebenchError(f"{error} (options are given as acceptance_options.NAME=VALUE)") from error


def with_stage_clock(config: Mapping[str, Any], point: Point, clock: Stopwatch) -> Decoder:
    """The method once more, with its drafter and all model forwards on the clock until `stop_stage_clock`."""
    method = point.method
    _set_clock(method, clock)
    if method.drafter is None:
        return method
    drafter: Any = ClockedDrafter(method.drafter, clock)
    return replace(method, algorithm=create_algorithm(config, drafter, point.costs), drafter=drafter)


def stop_stage_clock(method: Decoder) -> None:
    _set_clock(method, Stopwatch(method.target.device))


def _set_clock(method: Decoder, clock: Stopwatch) -> None:
    models: tuple[Any, ...] = (method.target, *clocked_models(method.drafter))
    for model in models:
        model.clock = clock


class ClockedDrafter:
    """A drafter whose expansions are timed as the stage `draft`."""

    def __init__(self, drafter: Drafter, clock: Stopwatch) -> None:
        self.drafter = drafter
        self.clock = clock

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.drafter, name)
        return self._timed(found) if name in ("expand", "likeliest") else found

    @property
    def members(self) -> dict[str, Any]:
        """Of a pool: they are asked one by one, so each is on the clock."""
        return {name: ClockedDrafter(member, self.clock) for name, member in self.drafter.members.items()}  # type: ignore[attr-defined]

    def _timed(self, ask: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            with self.clock.stage("draft"):
                return ask(*arguments)

        return timed


def _split(group: str, values: Mapping[str, Any], *keys: str) -> tuple[Any, dict[str, Any]]:
    """The first of `keys`, and everything that is none of them."""
    if values.get(keys[0]) is None:
        raise TreebenchError(f"{group}.{keys[0]} is not set: the YAML file of this {group} lacks `{keys[0]}: ...`")
    return values[keys[0]], {key: value for key, value in values.items() if key not in keys}

"""Every registered algorithm and drafter, small, on tiny models: what registry-wide tests run over."""

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from algorithms.base import Drafter, TreeAlgorithm
from algorithms.registry import ALGORITHMS, create, needs_drafter
from backend.acceptance import create_rule, default_rule
from backend.drafters.draft_model import DraftModel
from backend.drafters.layer_skip import LayerSkip
from backend.drafters.prompt_lookup import PromptLookup
from backend.model import TreeModel
from backend.roofline import Device, Roofline, Shape
from backend.sampling import Sampler
from runners.decoding import Decoder, Limits
from tests.tiny_models import VOCAB, perturbed, tiny_llama

SMALLER = {  # the YAML defaults fit real models
    "chain": {"depth": 4},
    "fixed_tree": {"widths": [3, 2, 1]},
    "eagle2": {"depth": 3, "top_k": 4, "total_tokens": 12},
    "eagle3": {"depth": 4, "top_k": 3, "total_tokens": 12},
    "ddd": {"depth": 3, "top_k": 4, "total_tokens": 12, "threshold": 0.5, "checks": [1, 2]},
    "dyspec": {"budget": 12},
    "specinfer": {"expansion": [2, 1, 2]},
    "opt_tree": {"budget": 8, "max_depth": 4, "threshold": 0.2},
    "sequoia": {"budget": 12, "max_depth": 4},
    "sequoia_hardware_aware": {"budget": 12, "max_depth": 4},
    "medusa_tree": {"budget": 12},
    "token_recycling": {"budget": 12},
    "swift": {"depth": 4, "stop": 0.1, "bounds": [0.5], "widths": [2, 3]},
    "cas_spec": {
        "max_length": 3,
        "max_nodes": 12,
        "width": 2,
        "latency": "prior",
        "memory": "sequence",
        "priors": {"default": [0.8, 0.1]},
    },
    "cast": {"thresholds": [0.5, 0.5, 0.5], "width": 3, "max_depth": 3, "budget": 12, "rows": "own"},
    "cast_rate": {"width": 3, "max_depth": 3, "budget": 12, "rows": "own"},
    "goodput_chain": {"max_length": 4, "rows": "own"},
    "best_fixed": {"settings": [[1, 3, 4, 12]]},
}
TINY_COSTS: dict[str, dict[str, Any]] = {  # for exact enumeration, what is special to algorithms that weigh costs
    "cast": {"thresholds": [0.1, 0.1, 0.1], "budget": 4, "batch_budget": 10**6},
    "cast_rate": {"budget": 4, "batch_budget": 10**6},
    "best_fixed": {"settings": [[1, 1, 2, 5]]},
}
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "chain": [{"children": "top_k"}, {"children": "iid"}],
    "fixed_tree": [{"children": "top_k"}, {"children": "iid"}, {"children": "without_replacement"}],
    "dyspec": [
        {"children": children, "build": build}
        for children in ("top_k", "without_replacement")
        for build in ("layerwise", "threshold", "algorithm1")
    ],
    "cas_spec": [{"objective": "paper", "estimator": "ema"}, {"objective": "ewif", "estimator": "beta"}],
    "specinfer": [{"children": "iid"}, {"children": "top_k"}],
    "sequoia": [{"children": "without_replacement"}, {"children": "top_k"}],
    "sequoia_hardware_aware": [{"children": "without_replacement"}],
}
COSTS = Device(1e9, {"float32": 1e9}, 1.0, 1.0, 4, 1e-4, 1e-4, 1e-5)  # wide forwards cost more, drafts little


class FlatInBatch(Roofline):
    """Costs that do not depend on the batch, so that no decision does; for tests that compare batches."""

    def forward_seconds(self, shape: Shape, batch: int, width: Any, context: int) -> Any:
        return super().forward_seconds(shape, 1, width, context)


def costs() -> Roofline:
    shape = Shape(layers=4, hidden=32, intermediate=64, heads=4, kv_heads=2, head_size=8, vocabulary=VOCAB)
    return FlatInBatch(COSTS, "float32", shape, None)


CASES = [(name, variant) for name in ALGORITHMS.all() for variant in VARIANTS.get(name, [{}])]
CASE_IDS = ["-".join([name, *map(str, variant.values())]) for name, variant in CASES]
DRAFTERS = ("small_model", "layer_skip", "prompt_lookup")
LIMITS = Limits(max_new_tokens=16, eos_token_ids=(), tree_slots=64)


def options_of(name: str, variant: dict[str, Any]) -> dict[str, Any]:
    """The algorithm's YAML values, made small."""
    run = {"top_k": None, "top_p": None, "algorithm": OmegaConf.load(f"conf/algorithm/{name}.yaml")}
    config = OmegaConf.to_container(OmegaConf.create(run), resolve=True)
    assert isinstance(config, dict)
    config = config["algorithm"]
    values = {str(key): value for key, value in config.items() if key not in ("name", "defaults")}
    return values | SMALLER.get(name, {}) | variant


def make_drafter(kind: str, target: TreeModel) -> Drafter:
    if kind == "layer_skip":
        return LayerSkip("layer_skip", target, [2])
    if kind == "prompt_lookup":
        return PromptLookup(VOCAB, max_ngram=3, min_ngram=1, continuation=1)
    return DraftModel("small_model", perturbed(target.model), VOCAB)


def make_algorithm(name: str, variant: dict[str, Any], drafter: Drafter | None) -> TreeAlgorithm:
    return create(name, drafter if needs_drafter(name) else None, options_of(name, variant), costs())


def make_decoder(
    name: str, variant: dict[str, Any], kind: str, temperature: float = 0.0, seed: int = 0, model_seed: int = 0
) -> Decoder:
    target = TreeModel(tiny_llama(model_seed))
    drafter = make_drafter(kind, target) if needs_drafter(name) else None
    algorithm = make_algorithm(name, variant, drafter)
    rule = create_rule(default_rule(algorithm.proposal, temperature))
    return Decoder(target, algorithm, drafter, rule, Sampler(temperature), seed)


def prompts(lengths: list[int], seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, VOCAB, (length,), generator=generator).tolist() for length in lengths]


def some_slow(cases: Iterable[Any], num_fast: int) -> list[Any]:
    """The first cases for every run, the others for the slow one."""
    return [case if i < num_fast else pytest.param(case, marks=pytest.mark.slow) for i, case in enumerate(cases)]

"""Finds the best constant tree per batch size on tuning prompts: `python -m runners.search_fixed --help`.

Acceptance lengths come from decoding with every tree of a grid, one prompt at a time; seconds come from the cost model,
so that the search does not depend on how busy the machine is.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from algorithms.eagle2 import Eagle2
from backend.costs import CostModel
from runners.benchmark import CONF, to_plain
from runners.cli import run_or_explain
from runners.console import console, metered
from runners.decoding import Request, generate
from runners.point import Point, build
from runners.pricing import COSTS, short_name, target_name
from runners.prompts import load_questions, render
from runners.store import write_bytes
from runners.summary import created_now, git_commit


class Tree(NamedTuple):
    """Settings of EAGLE-2's tree, and the tokens per step it yielded on the tuning prompts."""

    depth: int
    top_k: int
    total_tokens: int
    acceptance_length: float


def run(cfg: DictConfig) -> None:
    config = to_plain(cfg)
    grid = config.pop("grid")
    batch_sizes = config.pop("batch_sizes")
    given = config.pop("file")
    config["device"] = config["device"] | {"basis": "projected"}
    point = build(config)
    assert point.costs is not None
    assert point.method.drafter is not None
    requests = tuning_requests(config, point)
    settings = [
        (d, k, n) for d in grid["depth"] for k in grid["top_k"] for n in grid["total_tokens"] if n <= 1 + k + d * k * k
    ]
    trees = [Tree(1, 1, 1, 1.0)]
    for depth, top_k, total in metered(settings, "trees", len(settings)):
        trees.append(Tree(depth, top_k, total, acceptance_length(point, requests, depth, top_k, total)))
    name, context = point.method.drafter.name, int(sum(len(r.prompt) for r in requests) / len(requests))
    best = [(batch, *best_tree(point.costs, name, trees, batch, context)[:3]) for batch in batch_sizes]
    path = Path(given) if given else COSTS / f"best_fixed-{config['device']['name']}-{target_name(config)}-{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, (json.dumps(summary(config, trees, best), indent=1) + "\n").encode())
    console.print(f"best trees (batch size, depth, top_k, total_tokens) {best}: {path}")


def tuning_requests(config: Mapping[str, Any], point: Point) -> list[Request]:
    questions = load_questions({**config["task"], "split": "tune"}, config["num_prompts"], config["seed"])
    tokenizer, system = point.loaded.tokenizer, config["task"].get("system")
    return [Request(i, render(tokenizer, question.turns, [], system)) for i, question in enumerate(questions)]


def acceptance_length(point: Point, requests: Sequence[Request], depth: int, top_k: int, total_tokens: int) -> float:
    """Tokens per step, one prompt at a time."""
    algorithm = point.method.algorithm
    assert isinstance(algorithm, Eagle2)
    algorithm.depth, algorithm.top_k, algorithm.total_tokens = depth, top_k, total_tokens
    runs = [generate(point.method, [request], point.limits, point.clock()) for request in requests]
    return sum(len(run.tokens[0]) for run in runs) / sum(len(run.emitted) for run in runs)


def seconds_of_step(costs: CostModel, drafter: str, tree: Tree, batch: int, context: int) -> float:
    if tree.total_tokens == 1:
        return float(costs.verify_seconds(batch, 1, context) + costs.overhead_seconds(None, batch, 1))
    levels = [1] + [tree.top_k] * tree.depth
    drafting = sum(float(costs.draft_seconds(drafter, batch, width, context)) for width in levels)
    width = tree.total_tokens
    return drafting + float(costs.verify_seconds(batch, width, context) + costs.overhead_seconds(drafter, batch, width))


def best_tree(costs: CostModel, drafter: str, trees: Sequence[Tree], batch: int, context: int) -> Tree:
    """Of most tokens per second."""
    return max(trees, key=lambda tree: tree.acceptance_length / seconds_of_step(costs, drafter, tree, batch, context))


def summary(config: Mapping[str, Any], trees: Sequence[Tree], best: Sequence[Sequence[int]]) -> dict[str, Any]:
    runs = config["target"].get("runs") or config["target"]
    return {
        "schema_version": 1,
        "target": target_name({"target": runs}),
        "drafter": short_name(config["drafter"]),
        "device": config["device"]["name"],
        "dtype": config["dtype"],
        "task": config["task"]["name"],
        "split": "tune",
        "num_prompts": config["num_prompts"],
        "settings": [list(row) for row in best],
        "trees": [list(tree) for tree in trees],
        "git_commit": git_commit(),
        "created": created_now(),
    }


def main() -> None:
    """Exit code 0 if the trees were found, 2 for bad input."""
    run_or_explain(run, CONF, "search_fixed")


if __name__ == "__main__":
    main()

"""How often a drafter is right, by rank and by depth, on tuning prompts: what Sequoia and Medusa's tree are made of."""

import json
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from algorithms.autoregressive import Autoregressive
from algorithms.base import Drafter, TreeAlgorithm
from algorithms.confidence import BINS, bins_of
from algorithms.growth import Children, Growth, Offspring
from backend.acceptance import create_rule, default_rule
from backend.loading import LoadedModel
from backend.random import RandomStream
from backend.sampling import Sampler
from backend.targets import Target
from backend.timing import Stopwatch
from backend.tree import Accepted, Draft, TokenTree
from runners.console import metered
from runners.decoding import Decoder, Limits, Request, generate
from runners.pricing import COSTS, drafter_options, identity, short_name, target_name
from runners.prompts import load_questions, render
from runners.store import write_bytes
from runners.summary import created_now, git_commit

RATES_VERSION = 1


class Star(TreeAlgorithm):
    """A root with children only; counts which of them is accepted, in draw order."""

    def __init__(self, drafter: Drafter, ranks: int, children: str, draft_temperature: float) -> None:
        self.drafter, self.ranks = drafter, ranks
        self.children = Children.named(children, draft_temperature)
        self.proposal = self.children.proposal
        self.accepted = np.zeros(ranks)
        self.steps = 0

    def grow(self, tree: TokenTree, random: RandomStream) -> Draft:
        growth = Growth(tree, self.drafter, self.children, random)
        growth.expand(growth.root, self.ranks)
        return growth.draft()

    def observe(self, draft: Draft, accepted: Accepted) -> None:
        path = accepted.path[0].tolist()
        self.steps += path[0] == 0
        if len(path) > 1 and path[1] > 0:
            self.accepted[path[1] - 1] += 1


class Probe(TreeAlgorithm):
    """Drafts the answer that is known already, token by token, and notes how the drafter ranked each of them."""

    def __init__(self, drafter: Drafter, answer: list[int], depth: int, ranks: int) -> None:
        self.drafter, self.depth, self.ranks = drafter, depth, ranks
        self.answer, self.at = answer, 0
        self.hits = np.zeros((depth, ranks))
        self.tried = np.zeros(depth)
        self.expected, self.accepted = np.zeros((depth, BINS)), np.zeros((depth, BINS))

    def grow(self, tree: TokenTree, random: RandomStream) -> Draft:
        growth = Growth(tree, self.drafter, Children.named("top_k", 1.0), random)
        leaf = growth.root
        for depth, token in enumerate(self.answer[self.at : self.at + self.depth]):
            offspring = growth.propose(leaf, self.ranks)
            self._note(depth, offspring, token)
            known = torch.tensor([[[token]]], device=leaf.device)
            leaf = growth.add(leaf, Offspring(known, torch.zeros_like(known).float()))
        return growth.draft()

    def _note(self, depth: int, offspring: Offspring, token: int) -> None:
        log_probs = offspring.log_probs[0, 0].cpu().numpy().astype(np.float64)
        offered = np.isfinite(log_probs)
        hit = (offspring.tokens[0, 0].cpu().numpy() == token) & offered
        bins = bins_of(log_probs[offered])
        self.tried[depth] += 1
        self.hits[depth, : len(hit)] += hit
        np.add.at(self.expected[depth], bins, np.exp(log_probs[offered]))
        np.add.at(self.accepted[depth], bins, hit[offered].astype(float))

    def observe(self, draft: Draft, accepted: Accepted) -> None:
        self.at += int(accepted.num_nodes[0])


def measure_rates(config: Mapping[str, Any], loaded: LoadedModel, target: Target, drafter: Drafter) -> Path:
    """Decode tuning prompts, write the rates, and return where they are."""
    task = {**config["task"], "split": "tune"}
    requests = [
        Request(zlib.crc32(question.id.encode()), render(loaded.tokenizer, question.turns, [], task.get("system")))
        for question in load_questions(task, config["num_prompts"], config["seed"])
    ]
    limits = Limits(config["max_new_tokens"], loaded.eos_token_ids, config["depth"] + config["ranks"] + 2)
    sampler = Sampler(config["temperature"])
    plain = Decoder(target, Autoregressive(), None, _rule("top_k", config), sampler, config["seed"])
    clock = Stopwatch(target.device)
    star = Star(drafter, config["ranks"], config["children"], config["draft_temperature"])
    star_decoder = replace(
        plain, algorithm=star, drafter=drafter, rule=create_rule(default_rule(star.proposal, sampler.temperature))
    )
    probes = []
    for request in metered(requests, "acceptance rates", len(requests)):
        generate(star_decoder, [request], limits, clock)
        greedy = replace(plain, sampler=Sampler(0.0), rule=create_rule("greedy"))
        answer = generate(greedy, [request], limits, clock).tokens[0]
        probes.append(Probe(drafter, answer, config["depth"], config["ranks"]))
        generate(replace(greedy, algorithm=probes[-1], drafter=drafter), [request], limits, clock)
    path = rates_path(config, drafter.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, (json.dumps(summary(config, star, probes, len(requests)), indent=1) + "\n").encode())
    return path


def rates_path(config: Mapping[str, Any], drafter: str) -> Path:
    given = config["acceptance_file"]
    return Path(given) if given else COSTS / f"acceptance-{target_name(config)}-{drafter}-{config['task']['name']}.json"


def _rule(children: str, config: Mapping[str, Any]) -> Any:
    return create_rule(default_rule(Children.named(children, 1.0).proposal, config["temperature"]))


def summary(config: Mapping[str, Any], star: Star, probes: list[Probe], num_prompts: int) -> dict[str, Any]:
    """Rates with what they are valid for. `acceptance` is of the star; the others are of greedy decoding."""
    hits, tried = sum(p.hits for p in probes), sum(p.tried for p in probes)
    expected, accepted = sum(p.expected for p in probes), sum(p.accepted for p in probes)
    weight = config["prior_weight"]
    return {
        "schema_version": RATES_VERSION,
        **{key: identity(config)[key] for key in ("target", "dtype")},
        "drafter": short_name(config["drafter"]),
        "drafter_options": drafter_options(config),
        "task": config["task"]["name"],
        "split": "tune",
        "num_prompts": num_prompts,
        "steps": star.steps,
        "temperature": config["temperature"],
        "children": config["children"],
        "draft_temperature": config["draft_temperature"],
        "git_commit": git_commit(),
        "created": created_now(),
        "acceptance": rounded(star.accepted / max(1, star.steps)),
        "accuracies": rounded(np.asarray(hits) / np.maximum(1, tried)[:, None]),
        "ratios": rounded((accepted + weight) / (expected + weight)),
        "tokens_by_depth": np.asarray(tried).tolist(),
    }


def rounded(values: Float[NDArray[Any], "..."]) -> list[Any]:
    return np.round(values, 5).tolist()

"""CAS-Spec's Dynamic Tree Cascade (Ning et al. 2025, arXiv 2510.26843, section 4): one tree, several self-drafts."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from algorithms.base import Drafter, TreeAlgorithm
from algorithms.dytc import Choice, Configuration, Policy, choose
from algorithms.dytc_chain import ChainDrafting, Shape
from algorithms.dytc_estimators import AcceptanceEstimator, check_estimators
from algorithms.dytc_state import Latencies, RowState, checked_priors
from algorithms.growth import Children, Growth
from algorithms.registry import register
from backend.drafters.registry import clocked_models
from backend.errors import TreebenchError
from backend.random import RandomStream
from backend.timing import Stopwatch
from backend.tree import NO_NODE, Accepted, Draft, TokenTree

CHOICES = {
    "alternatives": ("equal", "ranked"),
    "memory": ("run", "sequence"),
    "latency": ("learned", "stepped", "prior"),
}


@register("cas_spec")
class CasSpec(TreeAlgorithm):
    """Again and again, the likeliest open leaf goes to the configuration that promises most, for as many tokens.

    Configurations are the members of the drafter, a pool, whose last one is the bottom draft; any other drafter is a
    pool of one. The first child of each pass continues the chain, `width - 1` others stay behind as open leaves; open
    siblings of the leaf that are at least `sibling_share` times as likely take part in its passes. `alternatives` are
    as likely as the first child (`equal`, the printed listing) or by the draft's own probabilities (`ranked`). A leaf
    is handed out once, where the listing never closes one.

    What is learnt is kept for the `run` (the paper) or the `sequence`. Unless `latency=prior`, decisions follow the
    clock: greedy text does not depend on it, but sampled text is another draw from the same law in every run.
    """

    def __init__(
        self,
        drafter: Drafter,
        *,
        objective: str,
        threshold: float,
        tail: str,
        max_length: int,
        max_nodes: int,
        width: int,
        alternatives: str,
        sibling_share: float,
        estimator: str,
        outcomes: str,
        decay: float,
        window: int,
        idle_drift: float,
        memory: str,
        latency: str,
        priors: Mapping[str, Sequence[float]],
        node_cost: float,
    ) -> None:
        for option, value in (("alternatives", alternatives), ("memory", memory), ("latency", latency)):
            if value not in CHOICES[option]:
                raise TreebenchError(f"cas_spec.{option} must be {' or '.join(CHOICES[option])}, not {value!r}")
        check_estimators(estimator, outcomes)
        self.drafter = drafter
        self.members: dict[str, Any] = getattr(drafter, "members", None) or {drafter.name: drafter}
        self.bottom = list(self.members)[-1]
        self.policy = Policy.checked(objective, threshold, tail)
        self.max_length, self.max_nodes, self.width = max_length, max_nodes, width
        self.ranked, self.sibling_share = alternatives == "ranked", sibling_share
        self.estimation = (estimator, outcomes, decay, window)
        self.idle_drift, self.memory = idle_drift, memory
        self.priors = checked_priors(priors, list(self.members))
        self.latencies = Latencies(self.priors, latency, node_cost)
        self.states: list[RowState] = []
        self.contexts: list[int] = []
        self.clock = Stopwatch(torch.device("cpu"))
        self.handed_over = 0.0

    def start(self, lengths: Int[Tensor, " batch"]) -> None:
        self.contexts = lengths.tolist()
        if self.memory == "sequence":
            self.states = []

    def grow(self, tree: TokenTree, random: RandomStream) -> Draft:
        self._begin(tree)
        growth = Growth(tree, self.drafter, Children.named("top_k", 1.0), random)
        while any(choices := self._decide(growth)):
            for name in dict.fromkeys(choice.name for choice in choices if choice):
                self._act(growth, name, [choice if choice and choice.name == name else None for choice in choices])
        self.handed_over = self.clock.now()
        return growth.draft()

    def observe(self, draft: Draft, accepted: Accepted) -> None:
        self.latencies.verified(draft.nodes.shape[1], self.clock.now() - self.handed_over)
        for row, (state, path) in enumerate(zip(self.states, accepted.path.tolist(), strict=True)):
            state.learn([node for node in path if node != NO_NODE], self.idle_drift)
            self.contexts[row] += sum(node != NO_NODE for node in path)

    def trace(self) -> dict[str, list[float]]:
        """alpha and c of each configuration (c per token, in target forwards) and the router's own time."""
        verify = self.latencies.costs.verify
        figures: dict[str, list[float]] = {}
        for name in self.members:
            figures[f"alpha_{name}"] = [state.acceptance(name).first for state in self.states]
            figures[f"c_{name}"] = [self.latencies.curve(name, True, 1)[0] / verify for _ in self.states]
            figures[f"nodes_{name}"] = [
                float(sum(len(action.chain) for action in state.actions if action.name == name))
                for state in self.states
            ]
        figures["decisions"] = [float(state.decisions) for state in self.states]
        figures["decision_seconds"] = [state.decision_seconds for state in self.states]
        return figures

    def _begin(self, tree: TokenTree) -> None:
        batch = tree.tokens.shape[0]
        self.clock = Stopwatch(tree.tokens.device)
        self.contexts = (self.contexts + [0] * batch)[:batch]
        self.states = (self.states + [self._new_state() for _ in range(batch - len(self.states))])[:batch]
        self.latencies.begin(batch, sum(self.contexts) // batch)
        for state in self.states:
            state.begin(self.latencies.costs)

    def _new_state(self) -> RowState:
        """A vertical cascade has the acceptance of the draft at its top."""
        tops = {name: getattr(member, "top", member).name for name, member in self.members.items()}
        shares = {name: top if top in self.members else name for name, top in tops.items()}
        kind, outcomes, decay, window = self.estimation
        made = {
            name: AcceptanceEstimator(kind, outcomes, self.priors[name].acceptance, decay, window)
            for name in set(shares.values())
        }
        return RowState(made, shares)

    def _decide(self, growth: Growth) -> list[Choice | None]:
        """Per row, what to draft at its best leaf; None once nothing is worth it at any leaf."""
        choices: list[Choice | None] = [None for _ in self.states]
        searching = {row for row, state in enumerate(self.states) if state.num_nodes <= self.max_nodes}
        while searching:
            leaves = [s.best_leaf() if row in searching else None for row, s in enumerate(self.states)]
            offers = self._offers(growth, leaves)
            started = time.perf_counter()
            for row, leaf in enumerate(leaves):
                choices[row] = choices[row] if leaf is None else self._choose(self.states[row], leaf, offers[row])
                if leaf is None or choices[row] is not None:
                    searching.discard(row)
                else:
                    del self.states[row].open[leaf]
            for state in self.states:
                state.decision_seconds += (time.perf_counter() - started) / len(self.states)
        return choices

    def _choose(self, state: RowState, leaf: int, offers: bool) -> Choice | None:
        state.decisions += 1
        state.offers = offers
        longest = min(self.max_length, self.max_nodes + 1 - state.num_nodes)
        configurations = [
            Configuration(name, state.acceptance(name, leaf), self.latencies.curve(name, offers, longest))
            for name in self.members
            if offers or name != self.bottom
        ]
        bottom = state.acceptance(self.bottom)
        return choose(self.policy, configurations, bottom, offers, state.open[leaf], self.latencies.costs, state.budget)

    def _offers(self, growth: Growth, leaves: Sequence[int | None]) -> list[bool]:
        """Whether the bottom draft has a token for the leaves. One that runs a model always has, and is not asked."""
        bottom = self.members[self.bottom]
        if hasattr(bottom, "model") or any(clocked_models(bottom)) or not any(leaf is not None for leaf in leaves):
            return [True for _ in leaves]
        nodes = torch.tensor([[NO_NODE if leaf is None else leaf] for leaf in leaves], device=growth.root.device)
        return (bottom.expand(growth.tree, nodes).amax(2)[:, 0] > -torch.inf).tolist()

    def _act(self, growth: Growth, name: str, choices: Sequence[Choice | None]) -> None:
        """Draft the chosen numbers of tokens, all rows together."""
        started = self.clock.now()
        growth.drafter = self.members[name]
        drafting = ChainDrafting(growth, self.states, choices, self._shape())
        drafting.run()
        offers = any(state.offers for state, choice in zip(self.states, choices, strict=True) if choice)
        self.latencies.drafted(name, offers, max(drafting.passes, 1), self.clock.now() - started)
        for state, choice in zip(self.states, choices, strict=True):
            if choice:
                state.budget.seconds += choice.seconds

    def _shape(self) -> Shape:
        ewif = self.policy.objective == "ewif"
        node_seconds = self.latencies.costs.per_node
        return Shape(self.max_nodes, self.width, self.ranked, self.sibling_share, node_seconds, prune=ewif)

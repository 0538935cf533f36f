"""What the DyTC router keeps: seconds per forward for all rows together, acceptance and the step's leaves for each."""

from collections import deque
from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

from algorithms.dytc import Budget, Costs
from algorithms.dytc_estimators import FORGETTING, Acceptance, AcceptanceEstimator, Latency
from backend.errors import TreebenchError

DEFAULT = "default"
TIMINGS_FOR_SCALE = 20
DRAFT_FORGETTING = 0.9  # a cascade's cost hangs on how often its bottom draft is right, which changes with the text


class Prior(NamedTuple):
    """Before anything is known: acceptance of a token, and its cost in target forwards."""

    acceptance: float
    cost: float


def checked_priors(priors: Mapping[str, Sequence[float]], names: Sequence[str]) -> dict[str, Prior]:
    """One per configuration; those that are not named take `default`."""
    for name, pair in priors.items():
        if len(pair) != 2 or not 0 <= pair[0] <= 1 or pair[1] <= 0:
            raise TreebenchError(
                f"cas_spec.priors.{name} is {list(pair)}; it must be an acceptance rate and a cost in target forwards"
            )
    if DEFAULT not in priors:
        raise TreebenchError("cas_spec.priors needs an entry `default`, for configurations that it does not name")
    return {name: Prior(*priors.get(name, priors[DEFAULT])) for name in names}


class Latencies:
    """Predicted seconds of drafting and verifying. A cascade is another thing where its bottom draft has a token to
    offer and where it has not, so each configuration has a model for either case."""

    def __init__(self, priors: Mapping[str, Prior], latency: str, node_cost: float) -> None:
        """`latency`: `learned`, `stepped` (see Latency; drafting is forgotten faster as well) or `prior`."""
        self.learn, stepped = latency != "prior", latency == "stepped"
        forgetting = DRAFT_FORGETTING if stepped else FORGETTING
        self.bottom = list(priors)[-1]
        self.drafting = {
            (name, offers): Latency(prior.cost, prior.cost, self.learn, stepped, forgetting)
            for name, prior in priors.items()
            for offers in (0, 1)
        }
        self.verifying = Latency(1.0, node_cost, self.learn, stepped)
        self.ratios: deque[float] = deque([1.0], maxlen=TIMINGS_FOR_SCALE)
        self.begin(1, 0)

    def begin(self, batch: int, context: int) -> None:
        """A step begins: predictions are made once for it. What is not learnt does not depend on the other rows."""
        self.batch, self.context = (batch, context) if self.learn else (1, 0)
        self.scale = median(self.ratios)
        self.curves: dict[tuple[str, bool], list[float]] = {}
        one, two, three = (self._seconds(self.verifying, nodes) for nodes in (1, 2, 3))
        per_node = max(three - two, 0.0)
        further = max(two - one - per_node, 0.0)
        self.costs = Costs(one, per_node, self.curve(self.bottom, True, 1)[0], further)

    def curve(self, name: str, offers: bool, longest: int) -> list[float]:
        """Seconds of drafting 1, 2, ..., `longest` tokens."""
        known = self.curves.setdefault((name, offers), [])
        model = self.drafting[name, offers]
        known += [self._seconds(model, tokens) for tokens in range(len(known) + 1, longest + 1)]
        return known[:longest]

    def _seconds(self, model: Latency, tokens: int) -> float:
        return model.seconds(self.batch, tokens, self.context, self.scale)

    def drafted(self, name: str, offers: bool, tokens: int, seconds: float) -> None:
        self.drafting[name, offers].add(self.batch, tokens, self.context, seconds, self.scale)

    def verified(self, nodes: int, seconds: float) -> None:
        if self.learn:
            if self.ratios[0] == 1.0 and len(self.ratios) == 1:
                self.ratios.clear()
            self.ratios.append(seconds / self.verifying.prior(self.batch, nodes))
            self.verifying.add(self.batch, nodes, self.context, seconds, self.scale)


class Action(NamedTuple):
    """A chain that a configuration drafted behind a leaf; the acceptance of its tokens is what is learnt from."""

    name: str
    leaf: int
    chain: list[int]


class RowState:
    """One sequence: acceptance per configuration for as long as it is remembered, open leaves of the current step."""

    def __init__(self, estimators: Mapping[str, AcceptanceEstimator], shares: Mapping[str, str]) -> None:
        self.estimators = estimators
        self.shares = shares  # whose estimate a configuration uses: a cascade that of the draft at its top
        self.begin(Costs(1.0, 0.0, 0.0))

    def begin(self, costs: Costs) -> None:
        self.reached = {0: 1.0}  # probability of each node
        self.open = {0: 1.0}
        self.authors: dict[int, str] = {}  # whose estimate each drafted first choice counts for
        self.budget = Budget(costs.verify, entry=costs.further)
        self.actions: list[Action] = []
        self.offers = False  # whether the bottom draft has a token for the leaf at hand
        self.decisions, self.decision_seconds = 0, 0.0

    @property
    def num_nodes(self) -> int:
        return len(self.reached)

    def add(self, node: int, chance: float, seconds: float) -> None:
        """A drafted node, reached with this probability, that takes so long to verify."""
        self.reached[node] = chance
        self.budget.add(chance, seconds)

    def acceptance(self, name: str, leaf: int = 0) -> Acceptance:
        """Of what a configuration would draft behind a leaf."""
        now = self.estimators[self.shares[name]].now
        return now.behind_own() if self.continues(name, leaf) else now

    def continues(self, name: str, leaf: int) -> bool:
        """Whether the leaf is the configuration's own first choice."""
        return self.authors.get(leaf) == self.shares[name]

    def best_leaf(self) -> int | None:
        return max(self.open, key=self.open.__getitem__, default=None)

    def frontier(self, leaf: int, sibling_share: float, siblings: Sequence[int]) -> list[int]:
        """The leaf, and its open siblings that are nearly as likely; all of them are leaves no more."""
        least = sibling_share * self.open[leaf]
        taken = [leaf, *(node for node in siblings if node != leaf and self.open.get(node, 0.0) >= least)]
        for node in taken:
            del self.open[node]
        return taken

    def learn(self, path: Sequence[int], idle_drift: float) -> None:
        """`path`: accepted nodes, the root among them unless the row has finished."""
        accepted = set(path)
        for action in self.actions:
            if action.leaf in accepted and action.chain:
                hits = [node in accepted for node in action.chain]
                known = hits.index(False) + 1 if False in hits else len(hits)
                own = self.continues(action.name, action.leaf)
                self.estimators[self.shares[action.name]].learn(hits[:known], own)
        for estimator in self.estimators.values():
            estimator.rest(idle_drift)

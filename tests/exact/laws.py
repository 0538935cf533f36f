"""The exact law of what an algorithm and an acceptance rule emit, against the target's own."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, Protocol

import torch
from torch import Tensor

from backend.acceptance import AcceptanceRule
from backend.random import RandomStream
from backend.sampling import Sampler
from backend.tree import NO_NODE, Accepted, Draft, TokenTree

from .branching import EnumeratingStream, Replay, enumerate_runs
from .factories import ExactFactories
from .models import Law, LawDrafter, Model, String
from .rational import ExactTensor, is_exact

Emissions = dict[String, Fraction]
PROMPT_TOKEN = 0


class GrowsTrees(Protocol):
    def grow(self, tree: TokenTree, random: RandomStream) -> Draft: ...

    def observe(self, draft: Draft, accepted: Accepted) -> None: ...


MakeAlgorithm = Callable[[LawDrafter], GrowsTrees]


def step(
    algorithm: GrowsTrees, drafter: LawDrafter, contexts: Sequence[String], replays: list[Replay], at: int = 0
) -> Draft:
    """Grow one draft per row; its laws must have stayed exact."""
    drafter.contexts = list(contexts)
    roots = torch.tensor([(PROMPT_TOKEN, *context)[-1] for context in contexts])
    with ExactFactories():
        draft = algorithm.grow(TokenTree.root(roots), EnumeratingStream.over(replays, at).of("draft"))
    assert draft.laws is None or is_exact(draft.laws), "the laws of the draft came out of inexact arithmetic"
    return draft


def verify(
    rule: AcceptanceRule, draft: Draft, target: Model, contexts: Sequence[String], replays: list[Replay], at: int = 0
) -> tuple[Accepted, list[String]]:
    """Accept with the production rule; also what each row emits."""
    logits = target.logits(contexts, draft.tree, draft.nodes)
    with ExactFactories():
        accepted = rule(draft, logits, Sampler(1.0), EnumeratingStream.over(replays, at))
    return accepted, list(map(tuple, accepted.emitted(draft.tree)))


def step_laws(
    make: MakeAlgorithm, rule: AcceptanceRule, target: Law, draft_law: Law, contexts: Sequence[String]
) -> dict[String, Emissions]:
    """The law of what one step emits after each context. Growing and accepting are enumerated one after the other."""
    drafter, model = LawDrafter(draft_law), Model(target)

    def grow(cases: list[int], replays: list[Replay]) -> list[tuple[Draft, int]]:
        draft = step(make(drafter), drafter, [contexts[case] for case in cases], replays)
        return [(draft, row) for row in range(len(cases))]

    laws: dict[String, Emissions] = {context: defaultdict(Fraction) for context in contexts}
    for draft, cases, chances in _distinct_drafts(enumerate_runs(grow, len(contexts))):
        here = [contexts[case] for case in cases]

        def accept(rows: list[int], replays: list[Replay], draft: Draft = draft, here: Any = here) -> list[String]:
            return verify(rule, _rows(draft, rows), model, [here[row] for row in rows], replays)[1]

        for row, emitted, replay in enumerate_runs(accept, len(cases)):
            assert all("draft" not in key for key in replay.uniforms), "acceptance looked at the draft's noise"
            laws[here[row]][emitted] += chances[row] * replay.probability
    return laws


def _distinct_drafts(grown: list[tuple[int, Any, Replay]]) -> list[tuple[Draft, list[int], list[Fraction]]]:
    """Equal drafts merged: batches of drafts, with the case and the probability of each row."""
    chances: dict[Any, Fraction] = defaultdict(Fraction)
    found: dict[Any, tuple[int, Draft, int]] = {}
    keys: dict[int, list[bytes]] = {}
    for case, (draft, row), replay in grown:
        if id(draft) not in keys:
            keys[id(draft)] = _row_keys(draft)
        key = (case, keys[id(draft)][row])
        chances[key] += replay.probability
        found.setdefault(key, (case, draft, row))
    batches: dict[int, tuple[Draft, list[int], list[int], list[Fraction]]] = {}
    for key, (case, draft, row) in found.items():
        _, rows, cases, probabilities = batches.setdefault(id(draft), (draft, [], [], []))
        rows.append(row)
        cases.append(case)
        probabilities.append(chances[key])
    return [(_rows(draft, rows), cases, probabilities) for draft, rows, cases, probabilities in batches.values()]


def _row_keys(draft: Draft) -> list[bytes]:
    """Names of the rows: equal where tokens, parents, nodes and laws are. Padding at the end makes no difference."""
    columns = [draft.tree.tokens, draft.tree.parents, draft.nodes]
    if draft.laws is not None:
        assert isinstance(draft.laws, ExactTensor)
        places = torch.arange(draft.nodes.shape[1]) if draft.law_places is None else draft.law_places
        own = draft.laws.numbers[torch.arange(len(draft.nodes))[:, None], places]
        columns.append(own.masked_fill((places == NO_NODE)[..., None], NO_NODE).flatten(1))
    return [row.numpy().tobytes() for row in torch.cat(columns, 1)]


def _rows(draft: Draft, rows: list[int]) -> Draft:
    def take(tensor: Tensor) -> Tensor:
        return ExactTensor(tensor.numbers[rows]) if isinstance(tensor, ExactTensor) else tensor[rows]

    tree = draft.tree
    taken = TokenTree(
        take(tree.tokens), take(tree.parents), take(tree.log_probs), take(tree.path_log_probs), take(tree.depths),
        take(tree.ancestors), tree.height,
    )  # fmt: skip
    laws, places = (None if of is None else take(of) for of in (draft.laws, draft.law_places))
    return Draft(taken, take(draft.nodes), draft.proposal, laws, places)


def emissions_of(make: MakeAlgorithm, rule: AcceptanceRule, target: Law, draft_law: Law, steps: int = 2) -> Emissions:
    """The joint law of what `steps` steps emit if noise is fresh in each (`uses_fresh_noise`) and no state is kept."""
    emissions: Emissions = {(): Fraction(1)}
    for _ in range(steps):
        laws = step_laws(make, rule, target, draft_law, list(emissions))
        longer: Emissions = defaultdict(Fraction)
        for context, chance in emissions.items():
            for emitted, probability in laws[context].items():
                longer[context + emitted] += chance * probability
        emissions = longer
    return emissions


def joint_emissions_of(
    make: MakeAlgorithm, rule: AcceptanceRule, target: Law, draft_law: Law, steps: int = 2
) -> Emissions:
    """The same with whole runs enumerated, one algorithm object per run: sees noise and state carried over steps."""

    model = Model(target)

    def run(cases: list[int], replays: list[Replay]) -> list[String]:
        drafter = LawDrafter(draft_law)
        algorithm, contexts = make(drafter), [()] * len(cases)
        for at in range(steps):
            draft = step(algorithm, drafter, contexts, replays, at)
            accepted, emitted = verify(rule, draft, model, contexts, replays, at)
            algorithm.observe(draft, accepted)
            contexts = [context + more for context, more in zip(contexts, emitted, strict=True)]
        return contexts

    emissions: Emissions = defaultdict(Fraction)
    for _, emitted, replay in enumerate_runs(run, 1):
        emissions[emitted] += replay.probability
    return emissions


def uses_fresh_noise(make: MakeAlgorithm, rule: AcceptanceRule, target: Law, draft_law: Law, steps: int = 2) -> bool:
    """Whether no step draws with noise of an earlier one, on one run of one algorithm object."""
    drafter, model = LawDrafter(draft_law), Model(target)
    algorithm, contexts, replays, seen = make(drafter), [()], [Replay()], set()
    for at in range(steps):
        draft = step(algorithm, drafter, contexts, replays, at)
        accepted, emitted = verify(rule, draft, model, contexts, replays, at)
        algorithm.observe(draft, accepted)
        contexts = [contexts[0] + emitted[0]]
        used, replays = set(replays[0].uniforms), [Replay()]
        if used & seen:
            return False
        seen |= used
    return True


def law_of(
    make: MakeAlgorithm, rule: AcceptanceRule, target: Law, draft_law: Law, steps: int = 2, joint: bool = False
) -> Emissions:
    """The law of the tokens that `steps` consecutive steps emit, completed to equal length by the target's own law."""
    enumerate_all = joint_emissions_of if joint else emissions_of
    return completed(enumerate_all(make, rule, target, draft_law, steps), target)


def completed(emissions: Emissions, target: Law) -> Emissions:
    """Strings of the same length: a shorter one goes on as the target would, which keeps a lossless law lossless."""
    longest = max(map(len, emissions))
    law: Emissions = defaultdict(Fraction)
    for emitted, chance in emissions.items():
        for string, probability in target_law(target, longest, emitted).items():
            law[string] += chance * probability
    return law


def target_law(target: Law, length: int, context: String = ()) -> Emissions:
    """The law of the strings of a length that start with `context`, given that they do."""
    law = {context: Fraction(1)}
    for _ in range(length - len(context)):
        law = {(*s, t): chance * p for s, chance in law.items() for t, p in enumerate(target(s)) if p}
    return law


def total_variation(law: Emissions, target: Law) -> Fraction:
    """Between a law of strings of one length and the target's."""
    own = target_law(target, len(next(iter(law))))
    return sum((abs(law.get(s, Fraction(0)) - own.get(s, Fraction(0))) for s in {*law, *own}), Fraction(0)) / 2


def mean_tokens(emissions: Emissions) -> Fraction:
    return sum((len(emitted) * chance for emitted, chance in emissions.items()), Fraction(0))

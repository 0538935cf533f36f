"""A plain sequential reference of the acceptance rules, and random cases for it."""

import math

import torch

from backend.random import RandomStream
from backend.sampling import Sampler
from backend.tree import NO_NODE, Draft, Proposal, TokenTree

IID = Proposal.IID
SAMPLER = Sampler(1.0)


def stream(rows, seed=0):
    return RandomStream.keyed(seed, torch.arange(rows), torch.zeros(rows, dtype=torch.int64))


def law(generator, vocabulary, zeros):
    weights = torch.rand(vocabulary, generator=generator) + 0.05
    weights[torch.rand(vocabulary, generator=generator) < zeros] = 0
    return weights / weights.sum() if weights.any() else torch.eye(vocabulary)[0]


def random_case(seed, sizes, vocabulary, proposal, zeros):
    """A ragged batch of random trees with random laws; also the target's logits in the order of the nodes."""
    generator = torch.Generator().manual_seed(seed)
    laws = torch.stack([torch.stack([law(generator, vocabulary, zeros) for _ in range(max(sizes) + 1)]) for _ in sizes])
    tree = TokenTree.root(torch.zeros(len(sizes), dtype=torch.int64))
    for node in range(1, max(sizes) + 1):
        parents = [int(torch.randint(0, node, (1,), generator=generator)) for _ in sizes]
        used = [
            set(tree.tokens[row, 1:][tree.parents[row, 1:] == parent].tolist()) for row, parent in enumerate(parents)
        ]
        tokens = []
        for row, size in enumerate(sizes):
            support = laws[row, parents[row]].nonzero().flatten().tolist()
            free = support if proposal is IID else [token for token in support if token not in used[row]]
            parents[row] = parents[row] if free and node <= size and tree.exists[row, parents[row]] else NO_NODE
            tokens.append(free[int(torch.randint(0, len(free), (1,), generator=generator))] if free else 0)
        tokens = torch.tensor(tokens)[:, None]
        tree = tree.add(torch.tensor(parents)[:, None], tokens, torch.zeros(len(sizes), 1))
    order = (~tree.exists).int().argsort(dim=1, stable=True)
    nodes = order.masked_fill(~tree.exists.gather(1, order), NO_NODE)
    own = laws.gather(1, order[:, :, None].expand(-1, -1, vocabulary))
    target = torch.stack(
        [torch.stack([law(generator, vocabulary, zeros) for _ in range(nodes.shape[1])]) for _ in sizes]
    )
    return Draft(tree, nodes, proposal, own), target.log()


class Reference:
    """One row, one node at a time, in fp64 and with the same uniform numbers."""

    def __init__(self, draft, logits, random, row):
        width = int(draft.exists[row].sum())
        self.nodes, self.tokens = draft.nodes[row, :width].tolist(), draft.of_nodes(draft.tree.tokens)[row].tolist()
        parents = draft.parent_places()[row, :width].tolist()
        self.children = [[c for c in range(width) if parents[c] == place] for place in range(width)]
        assert draft.laws is not None
        self.target = SAMPLER.probs(logits)[row].double().tolist()
        self.laws = draft.laws[row].double().tolist()
        self.random = random.select(torch.tensor([row]))
        self.proposal, self.closest = draft.proposal, math.inf

    def accepts(self, above, below, place):
        uniform = float(self.random.of("accept").uniforms(torch.tensor([[place]]), 1))
        self.closest = min(self.closest, abs(uniform * below - above)) if above else self.closest
        return uniform * below < above

    def choose(self, law, place):
        return int(self.random.of("residual").choose(torch.tensor([law], dtype=torch.float32), torch.tensor([place])))

    def strike(self, law, token):
        if self.proposal is IID:
            return law
        law = [0.0 if t == token else mass for t, mass in enumerate(law)]
        return [mass / sum(law) for mass in law] if sum(law) > 1e-12 else None

    def walk(self):
        place, path = 0, [0]
        while True:
            target, law = self.target[place], self.laws[place]
            for child in self.children[place]:
                token = self.tokens[child]
                if self.accepts(target[token], law[token], child):
                    path.append(child)
                    break
                residual = [max(p - q, 0) for p, q in zip(target, law, strict=True)]
                target = [mass / sum(residual) for mass in residual] if sum(residual) > 1e-7 else target
                if (law := self.strike(law, token)) is None:
                    break
            if path[-1] == place:
                return path, self.choose(target, place)
            place = path[-1]

    def traverse(self, place=0, weight=1.0):
        target, law = self.target[place], self.laws[place]
        for child in self.children[place]:
            token = self.tokens[child]
            found = self.traverse(child, min(1, weight * target[token] / law[token]) if law[token] else 0.0)
            if found:
                return [place, *found[0]], found[1]
            residual = [max(weight * p - q, 0) for p, q in zip(target, law, strict=True)]
            total = sum(residual)
            if total > 1e-7:
                target, weight = [mass / total for mass in residual], total / (total + 1 - weight)
            elif weight < 1 - 1e-6:
                weight = 0.0
            if (law := self.strike(law, token)) is None:
                break
        return ([place], self.choose(target, place)) if self.accepts(weight, 1.0, place) else None

    def target_sampling(self):
        picks = [
            int(self.random.of("accept").choose(torch.tensor([[mass]]).float(), torch.tensor([[place]])))
            for place, mass in enumerate(self.target)
        ]
        return self.follow(picks)

    def greedy(self):
        return self.follow([row.index(max(row)) for row in self.target])

    def follow(self, picks):
        path = [0]
        while hits := [c for c in self.children[path[-1]] if self.tokens[c] == picks[path[-1]]]:
            path.append(hits[0])
        return path, picks[path[-1]]

    def __call__(self, rule):
        by_rule = {"greedy": self.greedy, "target_sampling": self.target_sampling, "traversal": self.traverse}
        places, bonus = by_rule.get(rule, self.walk)()
        return [self.nodes[place] for place in places], bonus

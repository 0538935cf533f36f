"""Language models that are tables of exact probabilities."""

import random
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache

import torch
from torch import Tensor

from backend.tree import NO_NODE, Accepted, TokenTree, Verified

from .numbers import number_of_log
from .rational import ExactTensor

String = tuple[int, ...]
Law = Callable[[String], Sequence[Fraction]]  # of the next token, after the tokens emitted so far


class Model:
    """A language model that is a table; gives exact log-probabilities at the nodes of a tree."""

    def __init__(self, law: Law) -> None:
        self.law = law
        self.known: dict[String, list[int]] = {}

    def logits(self, contexts: Sequence[String], tree: TokenTree, nodes: Tensor) -> ExactTensor:
        """By the tokens on the path of each node; padding gets the root's."""
        tokens, parents = tree.tokens.tolist(), tree.parents.tolist()

        def path(row: int, node: int) -> String:
            return (*path(row, parents[row][node]), tokens[row][node]) if node > 0 else contexts[row]

        return ExactTensor(
            torch.tensor([[self.numbers(path(row, node)) for node in some] for row, some in enumerate(nodes.tolist())])
        )

    def numbers(self, context: String) -> list[int]:
        if context not in self.known:
            self.known[context] = [number_of_log(prob) for prob in self.law(context)]
        return self.known[context]


class LawDrafter:
    """A drafter over a table; `contexts` are the tokens committed in each row."""

    name = "law"

    def __init__(self, law: Law) -> None:
        self.model = Model(law)
        self.contexts: list[String] = []

    def allocate(self, batch: int, capacity: int) -> None: ...

    def prefill(self, prompts: Tensor, lengths: Tensor) -> None: ...

    def expand(self, tree: TokenTree, nodes: Tensor) -> Tensor:
        """Nothing is proposed at padding, so that no draw is made there: a replay must not depend on other rows."""
        log_probs = self.model.logits(self.contexts, tree, nodes)
        return log_probs.masked_fill((nodes == NO_NODE)[:, :, None], -torch.inf)

    def commit(self, tree: TokenTree, accepted: Accepted, verified: Verified | None = None) -> None: ...


def random_law(seed: int, vocabulary: int, kind: str) -> Law:
    """A law that depends on the whole context: dense, sparse (some zeros) or one-hot."""

    def law(context: String) -> Sequence[Fraction]:
        source = random.Random(f"{seed} {context}")
        weights = [source.randint(1, 6) for _ in range(vocabulary)]
        support = {"dense": vocabulary, "sparse": source.randint(max(1, vocabulary - 2), vocabulary - 1), "one-hot": 1}[
            kind
        ]
        kept = source.sample(range(vocabulary), support)
        total = sum(weights[token] for token in kept)
        return [Fraction(weights[token] if token in kept else 0, total) for token in range(vocabulary)]

    return cache(law)

"""Prompt lookup decoding (Saxena 2023): copy what followed the last n-gram where it occurred before."""

from contextlib import suppress
from dataclasses import dataclass, field

from jaxtyping import Int
from torch import Tensor

from backend.drafters.copier import Copier, certain
from backend.drafters.registry import register
from backend.loading import LoadedModel
from backend.targets import Target
from backend.tree import NO_NODE, Accepted, TokenTree, Verified


@dataclass
class _Row:
    """One sequence's committed tokens, the root not among them yet, and where each tree node copies from."""

    tokens: list[int]
    sources: dict[int, int] = field(default_factory=dict)  # node -> index in the text of the token that it proposes


class PromptLookup(Copier):
    """Longest n-gram first, earliest occurrence, as in the original code and in Spec-Bench.

    Matching runs over prompt and output. An occurrence counts only if `continuation` tokens of the text follow it (the
    original wants all 10 that it copies; 1 takes any). A node whose token is the one that its parent proposed keeps
    copying from there, so that a chain copies one passage; any other node looks up the n-gram that ends in it.
    """

    name = "prompt_lookup"

    def __init__(self, vocab_size: int, max_ngram: int, min_ngram: int, continuation: int) -> None:
        super().__init__(vocab_size)
        self.sizes = range(max_ngram, min_ngram - 1, -1)
        self.continuation = continuation
        self.rows: list[_Row] = []

    def allocate(self, batch: int, capacity: int) -> None:
        """Nothing: it has no cache."""

    def prefill(self, prompts: Int[Tensor, "batch prompt"], lengths: Int[Tensor, " batch"]) -> None:
        self.rows = [_Row(p[:n]) for p, n in zip(prompts.tolist(), lengths.tolist(), strict=True)]

    def _candidates(self, tree: TokenTree, nodes: Tensor) -> tuple[Tensor, Tensor]:
        tokens, parents = tree.tokens.tolist(), tree.parents.tolist()
        proposed = [
            [self._propose(row, tokens[b], parents[b], node) for node in wanted]
            for b, (row, wanted) in enumerate(zip(self.rows, nodes.tolist(), strict=True))
        ]
        return certain(proposed, nodes.device)

    def commit(self, tree: TokenTree, accepted: Accepted, verified: Verified | None = None) -> None:
        committed = tree.tokens.gather(1, accepted.path.clamp(min=0)).tolist()
        for row, tokens, count in zip(self.rows, committed, accepted.num_nodes.tolist(), strict=True):
            row.tokens += tokens[:count]
            row.sources.clear()

    def _propose(self, row: _Row, tokens: list[int], parents: list[int], node: int) -> int:
        """Id of the proposed token, `NO_NODE` for none."""
        if node == NO_NODE:
            return NO_NODE
        text = [*row.tokens, tokens[0]]
        copied = row.sources.get(parents[node])
        if copied is not None and text[copied] == tokens[node]:
            source = copied + 1 if copied + 1 < len(text) else None
        else:
            source = find_ngram(text, _path(tokens, parents, node), self.sizes, self.continuation)
        if source is None:
            return NO_NODE
        row.sources[node] = source
        return text[source]


@register("prompt_lookup")
def build(target: Target, loaded: LoadedModel, *, max_ngram: int, min_ngram: int, continuation: int) -> PromptLookup:
    return PromptLookup(target.vocab_size, max_ngram, min_ngram, continuation)


def _path(tokens: list[int], parents: list[int], node: int) -> list[int]:
    """Tokens from below the root down to the node."""
    path = []
    while parents[node] != NO_NODE:
        path.append(tokens[node])
        node = parents[node]
    return path[::-1]


def find_ngram(text: list[int], path: list[int], sizes: range, continuation: int) -> int | None:
    """Where in `text` the earliest occurrence of the longest n-gram that ends `text + path` goes on."""
    everything = text + path
    for size in sizes:
        ngram, end, latest = everything[-size:], size - 1, max(0, len(text) - continuation)
        with suppress(ValueError):  # no further occurrence of its last token
            while True:
                end = text.index(ngram[-1], end, latest) + 1
                if text[end - size : end] == ngram:
                    return end
    return None

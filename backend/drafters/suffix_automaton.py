"""Suffix-automaton lookup (Hu et al. 2024, SAM-Decoding, arXiv 2411.10666, section 3): copy after the longest match.

The automaton holds all substrings of prompt and output and grows with every committed token, in amortised constant
time (Blumer et al. 1985). This is the paper's dynamic automaton without the static one over a corpus.
"""

from dataclasses import dataclass, field

from jaxtyping import Int
from torch import Tensor

from backend.drafters.copier import Copier, certain
from backend.drafters.registry import register
from backend.errors import TreebenchError
from backend.loading import LoadedModel
from backend.targets import Target
from backend.tree import NO_NODE, Accepted, TokenTree, Verified

OCCURRENCES = ("earliest", "latest")
Match = tuple[int, int]  # state, length of the matched suffix
EMPTY: Match = (0, 0)


@dataclass
class Automaton:
    """States are sets of end positions; `first` and `last` are one of them, `match` is the text's longest suffix that
    occurred before its end."""

    text: list[int] = field(default_factory=list)
    length: list[int] = field(default_factory=lambda: [0])
    link: list[int] = field(default_factory=lambda: [-1])
    next: list[dict[int, int]] = field(default_factory=lambda: [{}])
    first: list[int] = field(default_factory=lambda: [-1])
    last: list[int] = field(default_factory=lambda: [-1])
    whole: int = 0  # the state of the whole text
    match: Match = EMPTY

    def follow(self, match: Match, token: int) -> Match:
        """The longest suffix of the matched text and `token` that occurs."""
        state, length = match
        while state and token not in self.next[state]:
            state = self.link[state]
            length = self.length[state]
        return (self.next[state][token], length + 1) if token in self.next[state] else EMPTY

    def append(self, token: int, track_latest: bool) -> None:
        self.match = self.follow(self.match, token)
        self.text.append(token)
        self._extend(token)
        if track_latest:
            self._mark_latest()
        state, length = self.match
        while state and self.length[self.link[state]] >= length:  # its state was split
            state = self.link[state]
        self.match = (state, length)

    def _mark_latest(self) -> None:
        """All suffixes of the text end at its end. As many steps as there are states of suffixes, not constant time."""
        state = self.whole
        while state > 0:
            self.last[state] = len(self.text) - 1
            state = self.link[state]

    def _extend(self, token: int) -> None:
        end = len(self.text) - 1
        new, state = self._add(self.length[self.whole] + 1, 0, {}, end), self.whole
        while state >= 0 and token not in self.next[state]:
            self.next[state][token] = new
            state = self.link[state]
        if state >= 0:
            target = self.next[state][token]
            self.link[new] = target if self.length[target] == self.length[state] + 1 else self._split(state, token)
        self.whole = new

    def _split(self, state: int, token: int) -> int:
        """Take the shorter substrings out of the state that `token` leads to."""
        target = self.next[state][token]
        clone = self._add(self.length[state] + 1, self.link[target], dict(self.next[target]), self.first[target])
        self.last[clone] = self.last[target]
        self.link[target] = clone
        while state >= 0 and self.next[state].get(token) == target:
            self.next[state][token] = clone
            state = self.link[state]
        return clone

    def _add(self, length: int, link: int, transitions: dict[int, int], end: int) -> int:
        self.length.append(length)
        self.link.append(link)
        self.next.append(transitions)
        self.first.append(end)
        self.last.append(end)
        return len(self.length) - 1


class SuffixAutomaton(Copier):
    """Each node proposes what followed the longest suffix of text and path where it occurred before, if that suffix has
    at least `min_match` tokens; `occurrence` says whether the earliest or the latest one counts."""

    name = "suffix_automaton"

    def __init__(self, vocab_size: int, min_match: int, occurrence: str) -> None:
        if occurrence not in OCCURRENCES:
            raise TreebenchError(f"suffix_automaton.occurrence must be earliest or latest, not {occurrence!r}")
        super().__init__(vocab_size)
        self.min_match = max(min_match, 1)
        self.latest = occurrence == "latest"
        self.rows: list[Automaton] = []
        self.matches: list[dict[int, Match]] = []  # per row, of the nodes of the step

    def allocate(self, batch: int, capacity: int) -> None:
        """Nothing: the automaton grows by itself."""

    def prefill(self, prompts: Int[Tensor, "batch prompt"], lengths: Int[Tensor, " batch"]) -> None:
        self.rows = [Automaton() for _ in prompts]
        self.matches = [{} for _ in self.rows]
        for automaton, prompt, length in zip(self.rows, prompts.tolist(), lengths.tolist(), strict=True):
            self._append(automaton, prompt[:length])

    def _candidates(self, tree: TokenTree, nodes: Tensor) -> tuple[Tensor, Tensor]:
        tokens, parents = tree.tokens.tolist(), tree.parents.tolist()
        proposed = [
            [self._propose(row, tokens[row], parents[row], node) for node in wanted]
            for row, wanted in enumerate(nodes.tolist())
        ]
        return certain(proposed, nodes.device)

    def commit(self, tree: TokenTree, accepted: Accepted, verified: Verified | None = None) -> None:
        committed = tree.tokens.gather(1, accepted.path.clamp(min=0)).tolist()
        for automaton, tokens, count in zip(self.rows, committed, accepted.num_nodes.tolist(), strict=True):
            self._append(automaton, tokens[:count])
        self.matches = [{} for _ in self.rows]

    def _append(self, automaton: Automaton, tokens: list[int]) -> None:
        for token in tokens:
            automaton.append(token, self.latest)

    def _propose(self, row: int, tokens: list[int], parents: list[int], node: int) -> int:
        """Id of the proposed token, `NO_NODE` for none."""
        if node == NO_NODE:
            return NO_NODE
        automaton = self.rows[row]
        state, length = self._match(row, tokens, parents, node)
        if length < self.min_match:
            return NO_NODE
        after = (automaton.last if self.latest else automaton.first)[state] + 1
        return automaton.text[after] if after < len(automaton.text) else tokens[0]  # the root follows the text

    def _match(self, row: int, tokens: list[int], parents: list[int], node: int) -> Match:
        known = self.matches[row]
        if node not in known:
            automaton = self.rows[row]
            before = automaton.match if node == 0 else self._match(row, tokens, parents, parents[node])
            known[node] = automaton.follow(before, tokens[node])
        return known[node]


@register("suffix_automaton")
def build(target: Target, loaded: LoadedModel, *, min_match: int, occurrence: str) -> SuffixAutomaton:
    return SuffixAutomaton(target.vocab_size, min_match, occurrence)

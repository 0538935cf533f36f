"""A random source that takes every outcome of every draw, each with its exact probability.

A uniform number is known as an interval. Each draw cuts it and goes on in one part, the others are left for a later
replay, so a number that is used twice is the same number both times: reused noise is modelled, not assumed away.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import accumulate
from typing import Any, Self

import torch
from torch import Tensor

from backend.random import NO_TOKEN, RandomStream

from .rational import ExactTensor, is_exact

Key = tuple[object, ...]
WHOLE = (Fraction(0), Fraction(1))


@dataclass
class Replay:
    """One run: the decisions to repeat, then the first way at every further draw."""

    prefix: tuple[int, ...] = ()
    trace: list[tuple[int, int]] = field(default_factory=list)  # (choice, number of choices)
    probability: Fraction = Fraction(1)
    uniforms: dict[Key, tuple[Fraction, Fraction]] = field(default_factory=dict)

    def place(self, key: Key, cuts: Sequence[Fraction]) -> int:
        """In which of the parts that end at `cuts` the uniform number lies."""
        low, high = self.uniforms.get(key, WHOLE)
        parts = [
            (index, max(low, start), min(high, end))
            for index, (start, end) in enumerate(zip([Fraction(0), *cuts], cuts, strict=False))
            if min(high, end) > max(low, start)
        ]
        choice = self.prefix[len(self.trace)] if len(self.trace) < len(self.prefix) else 0
        self.trace.append((choice, len(parts)))
        index, start, end = parts[choice]
        self.probability *= (end - start) / (high - low)
        self.uniforms[key] = (start, end)
        return index

    def siblings(self) -> Iterator[tuple[int, ...]]:
        """The decisions of the replays that branch off this one after its prefix."""
        choices = [choice for choice, _ in self.trace]
        for depth in range(len(self.prefix), len(self.trace)):
            for other in range(1, self.trace[depth][1]):
                yield (*choices[:depth], other)


def enumerate_runs(
    run: Callable[[list[int], list[Replay]], Sequence[Any]], num_cases: int, max_rows: int = 20_000
) -> list[tuple[int, Any, Replay]]:
    """All outcomes of `run`, which is given the case of each row of a batch and a replay for it."""
    pending: list[tuple[int, tuple[int, ...]]] = [(case, ()) for case in range(num_cases)]
    outcomes = []
    while pending:
        now, pending = pending[:max_rows], pending[max_rows:]
        replays = [Replay(prefix) for _, prefix in now]
        results = run([case for case, _ in now], replays)
        for (case, _), replay, result in zip(now, replays, results, strict=True):
            outcomes.append((case, result, replay))
            pending.extend((case, prefix) for prefix in replay.siblings())
    return outcomes


@dataclass(frozen=True)
class EnumeratingStream(RandomStream):
    """Stands in for `RandomStream`: the same primitives, one replay per row, noise named by `label` and counter."""

    replays: list[Replay]
    label: Key = ()

    @classmethod
    def over(cls, replays: list[Replay], *label: object) -> Self:
        return cls(torch.arange(len(replays)), replays, label)

    def of(self, purpose: str) -> Self:
        return replace(self, label=(*self.label, purpose))

    def select(self, rows: Tensor) -> Self:
        return replace(self, keys=self.keys[rows], replays=[self.replays[row] for row in rows.tolist()])

    def uniforms(self, counter: Tensor, num_lanes: int) -> Tensor:
        raise AssertionError("only the draw primitives may be used: they are what can be enumerated")

    exponentials = uniforms

    def accepts(self, numerator: Tensor, denominator: Tensor, counter: int | Tensor) -> Tensor:
        accepted = [
            replay.place(key, [_share(above, below), Fraction(1)]) == 0
            for (replay, key), above, below in zip(
                self._draws(counter, numerator.shape), _flat(numerator), _flat(denominator), strict=True
            )
        ]
        return torch.tensor(accepted, dtype=torch.bool).reshape(numerator.shape)

    def choose(self, weights: Tensor, counter: int | Tensor) -> Tensor:
        return self._tokens(weights, 1, counter, _draw_iid).squeeze(-1).clamp(min=0)

    def draw_iid(self, laws: Tensor, k: int, counter: int | Tensor) -> Tensor:
        return self._tokens(laws, k, counter, _draw_iid)

    def draw_without_replacement(self, laws: Tensor, k: int, counter: int | Tensor) -> Tensor:
        return self._tokens(laws, k, counter, _draw_distinct)

    def _tokens(self, laws: Tensor, k: int, counter: int | Tensor, draw: Callable[..., list[int]]) -> Tensor:
        shape = laws.shape[:-1]
        rows = zip(self._draws(counter, shape), _rows(laws), strict=True)
        tokens = [draw(replay, key, law, k) for (replay, key), law in rows]
        return torch.tensor(tokens, dtype=torch.int64).reshape(*shape, k)

    def _draws(self, counter: int | Tensor, shape: torch.Size) -> Iterator[tuple[Replay, Key]]:
        """The replay and the name of the noise of each element."""
        counters = torch.as_tensor(counter).expand(shape).flatten().tolist()
        each = len(counters) // max(len(self.replays), 1)
        return ((self.replays[index // each], (*self.label, counter)) for index, counter in enumerate(counters))


def _flat(tensor: Tensor) -> list[Fraction]:
    assert isinstance(tensor, ExactTensor), "a probability came out of inexact arithmetic"
    assert is_exact(tensor), "a probability came out of inexact arithmetic"
    return list(tensor.values().flat)


def _rows(laws: Tensor) -> list[list[Fraction]]:
    flat, size = _flat(laws), laws.shape[-1]
    return [flat[start : start + size] for start in range(0, len(flat), size)]


def _share(numerator: Fraction, denominator: Fraction) -> Fraction:
    """The probability of u * denominator < numerator."""
    if denominator == 0:
        return Fraction(int(numerator > 0))
    return min(max(numerator / denominator, Fraction(0)), Fraction(1))


def _draw(replay: Replay, key: Key, weights: Sequence[Fraction]) -> int:
    total = sum(weights, Fraction(0))
    return replay.place(key, [mass / total for mass in accumulate(weights)]) if total else NO_TOKEN


def _draw_iid(replay: Replay, key: Key, law: Sequence[Fraction], k: int) -> list[int]:
    return [_draw(replay, (*key, lane), law) for lane in range(k)]


def _draw_distinct(replay: Replay, key: Key, law: Sequence[Fraction], k: int) -> list[int]:
    left, tokens = list(law), []
    for lane in range(k):
        token = _draw(replay, (*key, lane), left)
        tokens.append(token)
        if token != NO_TOKEN:
            left[token] = Fraction(0)
    return tokens

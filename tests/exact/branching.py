"""A random source that takes every outcome of every draw, each with its exact probability.

A uniform number is known as an interval. Each draw cuts it and goes on in one part, the others are left for a later
replay, so a number that is used twice is the same number both times: reused noise is modelled, not assumed away.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate
from typing import Any, Self

import torch
from torch import Tensor

from backend.random import NO_TOKEN, RandomStream

from .numbers import fraction, number_of
from .rational import ExactTensor, is_exact

Key = tuple[object, ...]
ZERO = number_of(Fraction(0))

Interval = tuple[Fraction, Fraction]
Part = tuple[int, Fraction, Interval]  # which outcome, its share of what is known, its interval


def _parts(masses: tuple[Fraction, ...]) -> list[Part]:
    """[0, 1) cut in proportion to masses, none of them empty."""
    total, ends = sum(masses), list(accumulate(masses))
    starts = [Fraction(0), *ends]
    return [
        (index, mass / total, (start / total, end / total))
        for index, (mass, start, end) in enumerate(zip(masses, starts, ends, strict=False))
        if mass
    ]


def _within(parts: Sequence[Part], known: Interval) -> list[Part]:
    """The parts of an interval that the number is known to lie in."""
    low, high = known
    cut = [(index, max(low, start), min(high, end)) for index, _, (start, end) in parts]
    return [(index, (end - start) / (high - low), (start, end)) for index, start, end in cut if end > start]


@dataclass
class Replay:
    """One run: the decisions to repeat, then the first way at every further draw."""

    prefix: tuple[int, ...] = ()
    trace: list[tuple[int, int]] = field(default_factory=list)  # (choice, number of choices)
    probability: Fraction = Fraction(1)
    uniforms: dict[Key, Interval] = field(default_factory=dict)

    def place(self, key: Key, parts: Sequence[Part]) -> int:
        """In which of the parts of [0, 1) the uniform number lies."""
        known = self.uniforms.get(key)
        if known is not None:
            parts = _within(parts, known)
        choice = 0
        if len(parts) > 1:
            choice = self.prefix[len(self.trace)] if len(self.trace) < len(self.prefix) else 0
            self.trace.append((choice, len(parts)))
            self.probability *= parts[choice][1]
        index, _, interval = parts[choice]
        self.uniforms[key] = interval
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
            replay.place(key, _coin(above, below)) == 0
            for (replay, key), above, below in zip(
                self._draws(counter, numerator.shape), _numbers(numerator), _numbers(denominator), strict=True
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


def _numbers(tensor: Tensor) -> list[int]:
    assert is_exact(tensor), "a probability came out of inexact arithmetic"
    assert isinstance(tensor, ExactTensor)
    return tensor.numbers.flatten().tolist()


def _rows(laws: Tensor) -> list[tuple[int, ...]]:
    flat, size = _numbers(laws), laws.shape[-1]
    return [tuple(flat[start : start + size]) for start in range(0, len(flat), size)]


@lru_cache(maxsize=100_000)
def _coin(above: int, below: int) -> list[Part]:
    """u * denominator < numerator and its opposite, of two exact numbers."""
    numerator, denominator = fraction(above), fraction(below)
    if denominator == 0:
        share = Fraction(int(numerator > 0))
    else:
        share = min(max(numerator / denominator, Fraction(0)), Fraction(1))
    return _parts((share, 1 - share))


@lru_cache(maxsize=100_000)
def _parts_of(law: tuple[int, ...]) -> list[Part]:
    masses = tuple(fraction(number) for number in law)
    return _parts(masses) if any(masses) else []


def _draw(replay: Replay, key: Key, law: tuple[int, ...]) -> int:
    parts = _parts_of(law)
    return replay.place(key, parts) if parts else NO_TOKEN


def _draw_iid(replay: Replay, key: Key, law: tuple[int, ...], k: int) -> list[int]:
    return [_draw(replay, (*key, lane), law) for lane in range(k)]


def _draw_distinct(replay: Replay, key: Key, law: tuple[int, ...], k: int) -> list[int]:
    tokens: list[int] = []
    for lane in range(k):
        token = _draw(replay, (*key, lane), law)
        tokens.append(token)
        if token != NO_TOKEN:
            law = (*law[:token], ZERO, *law[token + 1 :])
    return tokens

"""SWIFT's search for blocks to skip (Xia et al. 2025, arXiv 2410.06916): random sets, and now and then the one that a
Gaussian process over the sets tried so far finds most promising."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from backend.errors import TreebenchError

CANDIDATES = 256  # random sets that the Gaussian process chooses among, half of them near the best one so far


@dataclass(frozen=True)
class SearchSettings:
    """See conf/search_layers.yaml."""

    skip_ratio: float
    iterations: int
    bayes_interval: int
    kappa: float
    noise: float
    patience: int
    max_score: float
    seed: int


@dataclass
class SearchResult:
    """The best set as a mask over the blocks, its score, and how the best score rose: (iteration, score)."""

    mask: np.ndarray
    score: float
    history: list[tuple[int, float]] = field(default_factory=list)
    iterations: int = 0


def search(num_blocks: int, score: Callable[[np.ndarray], float], settings: SearchSettings) -> SearchResult:
    """Maximise `score` over masks that skip int(num_blocks x skip_ratio) blocks. Starts from evenly spread blocks."""
    count = int(num_blocks * settings.skip_ratio)
    if not 0 < count < num_blocks:
        raise TreebenchError(f"skip_ratio {settings.skip_ratio:g} skips {count} of {num_blocks} blocks; choose another")
    random = np.random.default_rng(settings.seed)
    mask = np.zeros(num_blocks, dtype=bool)
    mask[np.linspace(0, num_blocks - 1, count).round().astype(int)] = True
    tried, scores = [mask], [score(mask)]
    best, since = SearchResult(mask, scores[0], [(0, scores[0])]), 0
    while best.score <= settings.max_score and since < settings.patience and best.iterations < settings.iterations:
        best.iterations += 1
        guided = best.iterations % settings.bayes_interval == 0
        mask = (
            _promising(tried, scores, best.mask, random, settings)
            if guided
            else _random_mask(num_blocks, count, random)
        )
        tried.append(mask)
        scores.append(score(mask))
        since += 1
        if scores[-1] > best.score:
            best.mask, best.score, since = mask, scores[-1], 0
            best.history.append((best.iterations, best.score))
    return best


def _random_mask(num_blocks: int, count: int, random: np.random.Generator) -> np.ndarray:
    mask = np.zeros(num_blocks, dtype=bool)
    mask[random.choice(num_blocks, count, replace=False)] = True
    return mask


def _neighbour(mask: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """One or two blocks exchanged."""
    near = mask.copy()
    for _ in range(random.integers(1, 3)):
        near[[random.choice(np.flatnonzero(near)), random.choice(np.flatnonzero(~near))]] ^= True
    return near


def _promising(
    tried: list[np.ndarray],
    scores: list[float],
    best: np.ndarray,
    random: np.random.Generator,
    settings: SearchSettings,
) -> np.ndarray:
    """The candidate with the largest upper confidence bound."""
    count = int(best.sum())
    candidates = [_random_mask(len(best), count, random) for _ in range(CANDIDATES // 2)]
    candidates += [_neighbour(best, random) for _ in range(CANDIDATES // 2)]
    mean, deviation = posterior(np.array(tried), np.array(scores), np.array(candidates), settings.noise)
    return candidates[int((mean + settings.kappa * deviation).argmax())]


def posterior(
    tried: np.ndarray, scores: np.ndarray, candidates: np.ndarray, noise: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of a Gaussian process; sets are as alike as they share blocks (a squared-exponential kernel
    of their Hamming distance, whose length scale is the number of skipped blocks)."""
    scale = max(float(tried[0].sum()), 1.0)
    center, spread = scores.mean(), max(float(scores.std()), 1e-3)
    factor = cho_factor(_kernel(tried, tried, scale) + noise * np.eye(len(tried)))
    across = _kernel(candidates, tried, scale)
    mean = across @ cho_solve(factor, (scores - center) / spread)
    variance = 1 - (across * cho_solve(factor, across.T).T).sum(1)
    return center + spread * mean, spread * np.sqrt(variance.clip(min=0))


def _kernel(one: np.ndarray, other: np.ndarray, scale: float) -> np.ndarray:
    distance = (one[:, None, :] != other[None, :, :]).sum(2)
    return np.exp(-distance / (2 * scale))

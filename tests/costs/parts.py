"""Cost models given by formulas, and algorithms on drafters that are tables."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from algorithms.base import TreeAlgorithm
from algorithms.registry import create
from backend.costs import Seconds, Widths
from tests.algorithms.parts import TableDrafter, random_table
from tests.parts import options_of

Formula = Callable[[int, Any, int], Any]


@dataclass
class Formulas:
    """Seconds of batch, width and context; `asked` notes contexts."""

    verify: Formula
    draft: Formula
    overhead: float = 0.0
    asked: list[tuple[str, int]] = field(default_factory=list)

    def verify_seconds(self, batch: int, width: Widths, context: int) -> Seconds:
        self.asked.append(("verify", context))
        return self.verify(batch, np.asarray(width, dtype=float), context)

    def draft_seconds(self, drafter: str, batch: int, width: Widths, context: int) -> Seconds:
        self.asked.append(("draft", context))
        return self.draft(batch, np.asarray(width, dtype=float), context)

    def overhead_seconds(self, drafter: str | None, batch: int, width: Widths) -> Seconds:
        return np.full_like(np.asarray(width, dtype=float), self.overhead)


def affine(slope: float, draft: float = 0.02, draft_slope: float = 0.005) -> Formulas:
    """One target step costs 1; each further token per row `slope`."""
    return Formulas(
        lambda batch, width, context: 1 + slope * batch * (width - 1),
        lambda batch, width, context: draft + draft_slope * batch * (width - 1),
    )


def make(name: str, costs: Any, seed: int = 0, vocabulary: int = 12, **options: Any) -> TreeAlgorithm:
    drafter = TableDrafter(random_table(seed, vocabulary))
    defaults = {"rows": "uniform"} if "rows" not in options else {}
    return create(name, drafter, options_of(name, {}) | defaults | options, costs)


PAPER: dict[str, Any] = {"thresholds": [4.0, 3.0, 2.5], "width": 10, "max_depth": 8, "budget": 64}

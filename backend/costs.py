"""What a step costs: seconds of forwards by batch, width and context, measured on a machine (`LatencyTable`).

`backend.roofline` derives the same from a datasheet. Algorithms that weigh cost see the protocol only.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from backend.errors import TreebenchError

TABLE_VERSION = 1
IDENTITY = ("device", "device_name", "threads", "target", "dtype", "torch")  # what a table is valid for
Seconds = Any  # a float64, or an array of them where the width is an array
Widths = int | NDArray[Any]


@runtime_checkable
class CostModel(Protocol):
    """Seconds by `batch` (rows), `width` (tokens per row; an array gives an array) and `context` (tokens cached)."""

    def verify_seconds(self, batch: int, width: Widths, context: int) -> Seconds:
        """One target forward."""
        ...

    def draft_seconds(self, drafter: str, batch: int, width: Widths, context: int) -> Seconds:
        """One drafted level: the drafter on `width` nodes per row, the choice of their children included."""
        ...

    def overhead_seconds(self, drafter: str | None, batch: int, width: Widths) -> Seconds:
        """The rest of a step that verifies `width` nodes: acceptance, commit, the loop."""
        ...


class Axes(NamedTuple):
    """Where a table was measured, ascending."""

    batches: Sequence[int]
    widths: Sequence[int]
    contexts: Sequence[int]

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.batches), len(self.widths), len(self.contexts)


@dataclass(frozen=True)
class Surface:
    """Seconds over axes, (batch, width, context), linear in between.

    Beyond the last width and context the last slope goes on; a batch outside the axes is refused.
    """

    axes: Axes
    seconds: Seconds = field(repr=False)

    @classmethod
    def measured(cls, axes: Axes, seconds: ArrayLike) -> "Surface":
        """Cells that were left out as too large (null) continue their curve. Then the lower envelope is taken: a
        forward costs no more than a wider one, to which it may always be padded."""
        extended = np.apply_along_axis(_extend, 1, np.array(seconds, dtype=np.float64), np.array(axes.widths))
        return cls(axes, np.minimum.accumulate(extended[:, ::-1], axis=1)[:, ::-1])

    def at(self, batch: int, width: Widths, context: int) -> Seconds:
        first, last = self.axes.batches[0], self.axes.batches[-1]
        if not first <= batch <= last:
            raise TreebenchError(
                f"the cost table covers batches {first} to {last}, not {batch}: run python -m runners.calibrate with "
                f"'batch_sizes=[..., {batch}]'"
            )
        by_context = self.seconds @ _weights(self.axes.contexts, context)
        curve = _weights(self.axes.batches, batch) @ by_context
        return _interpolated(np.array(self.axes.widths), curve, np.asarray(width))


def _extend(curve: Seconds, widths: NDArray[Any]) -> Seconds:
    known = np.isfinite(curve)
    return np.where(known, curve, _interpolated(widths[known], curve[known], widths))


def _interpolated(places: NDArray[Any], values: Seconds, wanted: NDArray[Any]) -> Seconds:
    """The slope that goes on beyond the last place is never negative."""
    slope = max(0.0, (values[-1] - values[-2]) / (places[-1] - places[-2])) if len(places) > 1 else 0.0
    return np.interp(wanted, places, values) + slope * np.maximum(0, wanted - places[-1])


def _weights(places: Sequence[int], wanted: int) -> Seconds:
    weights = np.zeros(len(places))
    if len(places) == 1 or wanted <= places[0]:
        weights[0] = 1.0
        return weights
    upper = min(int(np.searchsorted(places, wanted)), len(places) - 1)
    share = (wanted - places[upper - 1]) / (places[upper] - places[upper - 1])
    weights[upper - 1], weights[upper] = 1 - share, share
    return weights


@dataclass(frozen=True)
class LatencyTable:
    """Measured seconds of one target and of drafters for it. `overheads` have no context axis and are keyed by drafter,
    with "none" for plain decoding."""

    target: Surface
    drafters: Mapping[str, Surface]
    overheads: Mapping[str, Surface]

    def verify_seconds(self, batch: int, width: Widths, context: int) -> Seconds:
        return self.target.at(batch, width, context)

    def draft_seconds(self, drafter: str, batch: int, width: Widths, context: int) -> Seconds:
        return self.drafters[drafter].at(batch, width, context)

    def overhead_seconds(self, drafter: str | None, batch: int, width: Widths) -> Seconds:
        return self.overheads[drafter or "none"].at(batch, width, 0)


def read_table(
    path: Path, identity: Mapping[str, Any], drafter: str, options: Mapping[str, Any], command: str
) -> LatencyTable:
    """The table at `path` if it was finished, and measured for `identity` and for the drafter with these options.

    Everything else is refused with the `command` that measures it.
    """
    values = _read_json(path, command)
    if values.get("schema_version") != TABLE_VERSION:
        raise TreebenchError(f"cost table {path} has another format than this code reads: run {command} force=true")
    for key in IDENTITY:
        if values.get(key) != identity[key]:
            raise TreebenchError(
                f"cost table {path} is for {key} {values.get(key)!r}, not {identity[key]!r}: {command}"
            )
    drafters = values["drafters"]
    if drafter not in drafters:
        raise TreebenchError(f"cost table {path} does not cover drafter {drafter}: run {command}")
    if drafters[drafter]["options"] != dict(options):
        raise TreebenchError(f"cost table {path} is for other options of drafter {drafter}: run {command} force=true")
    unfinished = [name for name in ("none", drafter) if not drafters[name]["complete"]]
    if not values["complete"] or unfinished:
        raise TreebenchError(f"cost table {path} is unfinished: run {command} to measure the rest")
    return _table(values, path, command)


def _read_json(path: Path, command: str) -> dict[str, Any]:
    if not path.is_file():
        raise TreebenchError(f"there is no cost table {path}: run {command}")
    try:
        values = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TreebenchError(f"cost table {path} is damaged, perhaps truncated: run {command} force=true") from error
    return values if isinstance(values, dict) else {}


def _table(values: Mapping[str, Any], path: Path, command: str) -> LatencyTable:
    try:
        axes = Axes(values["batches"], values["widths"], values["contexts"])
        parts = {name: part for name, part in values["drafters"].items() if part["complete"]}
        return LatencyTable(
            Surface.measured(axes, values["target_seconds"]),
            {name: Surface.measured(axes, part["seconds"]) for name, part in parts.items() if part["seconds"]},
            {
                name: Surface.measured(axes._replace(contexts=[0]), np.array(part["overhead"], dtype=float)[:, :, None])
                for name, part in parts.items()
            },
        )
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise TreebenchError(f"cost table {path} is damaged ({error}): run {command} force=true") from error

"""A sweep folder as a list of points, grouped by what may share a table, and what a reader must be told about them.

`python -m analysis.load SWEEP_DIR` writes all points into two files of `SWEEP_DIR/compact/`.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from analysis.compact import main as compact
from runners.records import RunRecord
from runners.store import NOT_HASHED, StoredRun, config_hash, read_runs

BASELINE = "autoregressive"
DAGGER = "†"
MOST_OPTIONS = 4  # that a method's name spells out; beyond, their hash stands for them


class Setting(NamedTuple):
    """What all figures of one table or one axis have in common."""

    basis: str
    target: str
    machine: str  # device, and the processor's name where the record knows it
    dtype: str
    batch_size: int
    temperature: float

    def __str__(self) -> str:
        batch = f"batch {self.batch_size}, temperature {self.temperature:g}"
        return f"{self.basis}, {self.target}, {self.machine}, {self.dtype}, {batch}"

    @property
    def without_batch(self) -> str:
        return f"{self.basis}, {self.target}, {self.machine}, {self.dtype}, temperature {self.temperature:g}"

    @property
    def slug(self) -> str:
        """For names of files."""
        batch = [f"b{self.batch_size}"] if self.batch_size else []
        text = "-".join([*map(str, self[:4]), *batch, f"t{self.temperature:g}"])
        return re.sub(r"[^A-Za-z0-9_.-]+", "_", text)[:100]


class Point(NamedTuple):
    """A record and where it belongs. No two successful points share setting, method and task."""

    name: str  # of its folder
    setting: Setting
    method: str  # algorithm, drafter, and the options that tell it from its neighbours
    record: RunRecord
    folder: Path

    @property
    def label(self) -> str:
        """The method as tables and plots show it: a lossy acceptance rule is marked."""
        return self.method if self.record.lossless else self.method + DAGGER


class Sweep(NamedTuple):
    folder: Path
    points: list[Point]
    problems: list[str]  # one line for each file that cannot be read

    @property
    def title(self) -> str:
        return self.folder.resolve().name

    @property
    def succeeded(self) -> list[Point]:
        return [point for point in self.points if point.record.status == "ok"]


def load_sweep(folder: Path) -> Sweep:
    runs, problems = read_runs(folder)
    return Sweep(folder, _distinct([as_point(run) for run in runs]), problems)


def merge_sweeps(folders: list[Path]) -> Sweep:
    """Points of several sweeps, other people's too: named by sweep and folder, and of whatever schema version."""
    points, problems = [], []
    for folder in folders:
        runs, broken = read_runs(folder, any_version=True)
        points += [as_point(run)._replace(name=f"{folder.resolve().name}/{run.folder.name}") for run in runs]
        problems += [f"{folder.resolve().name}/{line}" for line in broken]
    names = " + ".join(folder.resolve().name for folder in folders)
    return Sweep(Path(names), _distinct(points), problems)


def as_point(run: StoredRun) -> Point:
    return Point(run.folder.name, _setting(run.record), _method(run.record), run.record, run.folder)


def by_setting(sweep: Sweep) -> dict[Setting, list[Point]]:
    """The successful points of each setting: the baseline first, then by name."""
    settings = defaultdict(list)
    for point in sorted(sweep.succeeded, key=_order):
        settings[point.setting].append(point)
    return dict(sorted(settings.items()))


def _order(point: Point) -> tuple:
    return point.record.algorithm != BASELINE, point.method, point.record.task


# ------------------------------------------------------------------------------------------------- naming of methods


def _setting(record: RunRecord) -> Setting:
    processor = record.environment.get("device_name")
    machine = f"{record.device} ({processor})" if processor and processor != record.device else record.device
    return Setting(record.basis, record.target, machine, record.dtype, record.batch_size, float(record.temperature))


def _method(record: RunRecord) -> str:
    has_drafter = record.drafter not in ("", "none") and record.algorithm != BASELINE
    return f"{record.algorithm} ({record.drafter})" if has_drafter else record.algorithm


def _distinct(points: list[Point]) -> list[Point]:
    """Where points would share a cell (two budgets, two seeds), the options that differ join the method's name."""
    namesakes = defaultdict(list)
    for point in points:
        namesakes[point.setting, point.method].append(point)
    suffixes = {}
    for group in namesakes.values():
        suffixes |= _suffixes([point for point in group if point.record.status == "ok"])
    return [point._replace(method=point.method + suffixes.get(point.name, "")) for point in points]


def _suffixes(namesakes: list[Point]) -> dict[str, str]:
    """By point name; empty where no cell is shared. Points that no option tells apart are called by their folder."""
    varied = sorted(_varied_options(namesakes))
    texts = {point.name: _suffix(point.record, varied) for point in namesakes}
    cells = Counter((point.record.task, texts[point.name]) for point in namesakes)
    clashing = [point.name for point in namesakes if cells[point.record.task, texts[point.name]] > 1]
    return texts | {name: f"{texts[name]} {name}" for name in clashing}


def _suffix(record: RunRecord, varied: list[str]) -> str:
    options = _options(record)
    if len(varied) > MOST_OPTIONS:
        return f" #{config_hash({key: options.get(key) for key in varied})[:8]}"
    return "".join(f" {key.split('.')[-1]}={_short(options.get(key))}" for key in varied)


def _varied_options(namesakes: list[Point]) -> set[str]:
    """Options that differ between points of the same task."""
    tasks = defaultdict(list)
    for point in namesakes:
        tasks[point.record.task].append(_options(point.record))
    return {key for rows in tasks.values() for row in rows for key in row if any(row[key] != o.get(key) for o in rows)}


def _options(record: RunRecord) -> dict[str, Any]:
    config = {key: value for key, value in record.config.items() if key not in NOT_HASHED}
    names = ("acceptance", "max_new_tokens", "num_prompts", "seed")
    return {name: getattr(record, name) for name in names} | dict(_flat(config))


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _short(value: Any) -> str:
    return "/".join(map(str, value)) if isinstance(value, list) else str(value)


if __name__ == "__main__":
    raise SystemExit(compact())

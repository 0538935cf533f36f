"""A sweep folder as a list of points, grouped by what may share a table, and what a reader must be told about them."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from runners.records import RunRecord
from runners.store import NOT_HASHED, StoredRun, read_runs

BASELINE = "autoregressive"
DAGGER = "†"
MOST_OPTIONS = 4  # that a method's name spells out; beyond, the config's hash stands for them
FULL_PRECISION = ("float32", "fp32", "float64")  # rounding is no excuse for another output


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
    if len(varied) > MOST_OPTIONS:
        return f" #{record.config_hash[:8]}"
    options = _options(record)
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


# ----------------------------------------------------------------------------------------------- what must be said


BASES = {
    "measured": "measured: wall clock on this device.",
    "projected": "projected: real acceptances, seconds from a cost model of the named device; not wall clock.",
    "replayed": "replayed: acceptances of recorded traces, seconds from a cost model; not wall clock.",
}
DEFINITIONS = [
    "speedup: decode seconds per token, baseline over method; the seconds are medians over repeats, summed over units "
    "(a unit is one timed batch), prefill apart. The 95 % interval is a paired BCa bootstrap over units.",
    "tau: acceptance length, tokens emitted per verification step, bonus included; all tokens over all steps.",
    "mean: arithmetic, over tasks. identical: share of answers whose token ids equal the baseline's.",
    "-: no figure; the point failed, was skipped, or is not part of the sweep.",
]
LOSSY = "lossy acceptance rule: the output is not the target's own, so its speed does not compare with the others'."


def warnings(sweep: Sweep) -> list[str]:
    """What a reader must know before trusting a figure, one line each."""
    lines = [
        f"{point.method} on {point.record.task}: only {percent(point.record.identical_rate)} of the answers equal the "
        f"baseline's in {point.record.dtype} at temperature 0, where all should ({point.name})"
        for point in sweep.succeeded
        if _differs(point.record)
    ]
    lines += [
        f"{point.method} on {point.record.task}: no speedup ({point.name})"
        for point in sweep.succeeded
        if point.record.speedup is None
    ]
    commits = _commits(sweep.succeeded)
    return [*lines, f"the points come from several commits: {', '.join(commits)}"] if len(commits) > 1 else lines


def _differs(record: RunRecord) -> bool:
    exact = record.lossless and record.temperature == 0 and record.dtype in FULL_PRECISION
    return exact and record.identical_rate is not None and record.identical_rate < 1


def notes(sweep: Sweep) -> list[str]:
    """Reasons that successful points carry (such as a missing interval), the same ones counted together."""
    reasons = Counter(point.record.reason for point in sweep.succeeded if point.record.reason)
    return [f"{reason} ({count} point{'s' * (count > 1)})" for reason, count in reasons.items()]


def provenance(setting: Setting, points: list[Point]) -> list[str]:
    """The footer of a setting's table."""
    lines = [
        f"commit {', '.join(_commits(points))}; {setting}.",
        f"baseline ({BASELINE}, same backend), decode tokens/s: {_baseline_rates(points)}.",
        BASES.get(setting.basis, f"{setting.basis}: a basis unknown to this code."),
        *DEFINITIONS,
    ]
    rules = sorted({point.record.acceptance or "unnamed" for point in points if not point.record.lossless})
    return [*lines, f"{DAGGER} {LOSSY} Rules: {', '.join(rules)}."] if rules else lines


def _baseline_rates(points: list[Point]) -> str:
    """Per task the span over its points: each measures the baseline anew."""
    rates = defaultdict(list)
    for point in points:
        if point.record.baseline_tokens_per_second is not None:
            rates[point.record.task].append(point.record.baseline_tokens_per_second)
    return ", ".join(f"{task} {_span(min(found), max(found))}" for task, found in sorted(rates.items())) or "unknown"


def _span(low: float, high: float) -> str:
    return f"{low:.1f}" if f"{low:.1f}" == f"{high:.1f}" else f"{low:.1f}-{high:.1f}"


def _commits(points: Iterable[Point]) -> list[str]:
    return sorted({point.record.git_commit[:10] or "unknown" for point in points})


def percent(share: float | None) -> str:
    """Only all is 100 %."""
    if share is None:
        return "-"
    return "<100%" if 0.9995 <= share < 1 else f"{share:.1%}"

"""What a reader must be told about a sweep's figures: definitions, provenance, warnings."""

from collections import Counter, defaultdict
from collections.abc import Iterable

from analysis.load import BASELINE, DAGGER, Point, Setting, Sweep
from runners.records import SCHEMA_VERSION, RunRecord

WORSE = "*"
FULL_PRECISION = ("float32", "fp32", "float64")  # rounding is no excuse for another output
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
    f"{WORSE}: slower than the best of its column: the 95 % interval of the ratio over the same prompts, "
    "each against its own baseline, excludes 1 (paired percentile bootstrap, 5 prompts or more).",
    "-: no figure; the point failed, was skipped, or is not part of the sweep.",
]
LOSSY = "lossy acceptance rule: the output is not the target's own, so its speed does not compare with the others'."


def warnings(sweep: Sweep) -> list[str]:
    """What a reader must know before trusting a figure, one line each."""
    lines = [
        f"{point.method} on {point.record.task}: only {percent(point.record.identical_rate)} of the answers equal the "
        f"baseline's in {point.record.dtype} at temperature 0, where all should ({point.name})"
        for point in sweep.succeeded
        if differs(point.record)
    ]
    lines += [
        f"{point.method} on {point.record.task}: no speedup ({point.name})"
        for point in sweep.succeeded
        if point.record.speedup is None
    ]
    versions = Counter(point.record.schema_version for point in sweep.succeeded)
    lines += [
        f"{count} point{'s' * (count > 1)} of schema version {version}: what version {SCHEMA_VERSION} lacks is left out"
        for version, count in versions.items()
        if version != SCHEMA_VERSION
    ]
    commits = _commits(sweep.succeeded)
    return [*lines, f"the points come from several commits: {', '.join(commits)}"] if len(commits) > 1 else lines


def differs(record: RunRecord) -> bool:
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

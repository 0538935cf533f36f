"""Can the figures be trusted: the losslessness report and the time outside model forwards, a line per point."""

from typing import Any

import pandas

from analysis.load import Point
from analysis.remarks import percent
from runners.records import RunRecord

NOT_KNOWN = "-"
EXPLANATION = (
    "checks: re-scoring reads the finished texts of baseline, method and control (a chain with the same drafter) in "
    "one causal pass: the share of emitted tokens that are the largest logit, and how far the worst lies below it. At "
    "temperature > 0, z compares the tokens' surprisal with the target's entropy (beyond 4 is not chance). "
    "outside: share of decode time outside model forwards, from the pass with stage clocks."
)


def checks_table(points: list[Point]) -> pandas.DataFrame:
    """As text, one row per point."""
    return pandas.DataFrame([_checks(point) for point in points])


def _checks(point: Point) -> dict[str, str]:
    record = point.record
    report = record.losslessness
    return {
        "algorithm": point.label,
        "task": record.task,
        "rule": record.acceptance or NOT_KNOWN,
        "identical": percent(record.identical_rate),
        **{arm: _rescored(report.get(arm)) for arm in ("baseline", "method", "control")},
        "events": str(sum(report.get("numeric_events", {}).values())) if report else NOT_KNOWN,
        "outside": _outside_forwards(record),
    }


def _rescored(section: dict[str, Any] | None) -> str:
    if not section:
        return NOT_KNOWN
    if "z" in section:
        return f"z {section['z']:+.1f}"
    return f"{section['argmax_rate']:.1%}, {section['largest_gap']:.2f}"


def _outside_forwards(record: RunRecord) -> str:
    stages = record.stage_seconds
    return f"{1 - stages['forward'] / stages['total']:.1%}" if stages.get("total") else NOT_KNOWN

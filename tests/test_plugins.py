"""An algorithm of one's own is one .py and one YAML file in some folder, given as plugins=FOLDER."""

import pytest

from algorithms.registry import ALGORITHMS
from tests.entry_point import Bench

CODE = '''
"""Two tokens at a time."""

from algorithms.base import Drafter, TreeAlgorithm
from algorithms.growth import Children, Growth
from algorithms.registry import register
from backend.random import RandomStream
from backend.tree import Draft, TokenTree


@register("pairs")
class Pairs(TreeAlgorithm):
    def __init__(self, drafter: Drafter, *, width: int) -> None:
        self.drafter = drafter
        self.width = width

    def grow(self, tree: TokenTree, random: RandomStream) -> Draft:
        growth = Growth(tree, self.drafter, Children.named("top_k", 1.0), random)
        growth.expand(growth.root, self.width)
        return growth.draft()
'''
YAML = "# Pairs.\ndefaults:\n  - override /drafter@_global_.drafter: layer_skip\n\nname: pairs\nwidth: 3\n"


@pytest.fixture
def bench(tmp_path, monkeypatch) -> Bench:
    monkeypatch.setattr(ALGORITHMS, "_parts", dict(ALGORITHMS.all()))  # what plug-ins register ends with the test
    return Bench(tmp_path)


@pytest.fixture
def plugins(tmp_path):
    folder = tmp_path / "my plug-ins"
    (folder / "algorithm").mkdir(parents=True)
    (folder / "pairs.py").write_text(CODE)
    (folder / "algorithm" / "pairs.yaml").write_text(YAML)
    return folder


def test_two_files_add_an_algorithm(bench, plugins):
    outcome = bench(f"plugins={plugins}", "algorithm=pairs", "drafter.skip=[1]", "num_prompts=1")
    assert outcome.code == 0, outcome.lines
    run = outcome.run
    assert (run["status"], run["algorithm"], run["drafter"]) == ("ok", "pairs", "layer_skip")
    assert run["identical_rate"] == 1.0
    assert set(outcome.steps["verified_nodes"]) == {4}


def test_its_options_are_checked_like_any_other(bench, plugins):
    given = (f"plugins={plugins}", "algorithm=pairs")
    assert bench(*given, "algorithm.widht=2").lines == [
        "error: algorithm=pairs has no option 'widht' (did you mean 'width'?); it has name, width"
    ]
    assert bench(*given, "algorithm.width=wide").lines == [
        "failed: algorithm.width is 'wide'; pairs needs a whole number"
    ]


def test_it_is_listed_where_a_name_is_unknown(bench, plugins):
    (line,) = bench(f"plugins={plugins}", "algorithm=pair").lines
    assert line.startswith("error: unknown algorithm 'pair' (did you mean 'pairs'?)")


def test_missing_folder(bench, tmp_path):
    outcome = bench(f"plugins={tmp_path / 'none'}", "algorithm=pairs")
    assert (outcome.code, outcome.lines) == (2, [f"error: plugins={tmp_path / 'none'}: no such folder"])


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def grow(:\n", "SyntaxError: invalid syntax"),
        ("import no_such_module\n", "ModuleNotFoundError: No module named"),
    ],
)
def test_broken_file(bench, plugins, code, reason):
    (plugins / "pairs.py").write_text(code)
    outcome = bench(f"plugins={plugins}", "algorithm=pairs")
    (line,) = outcome.lines
    assert outcome.code == 2
    assert line.startswith(f"error: plugins: {plugins / 'pairs.py'} cannot be imported: {reason}")


def test_a_name_that_is_taken(bench, plugins):
    (plugins / "pairs.py").write_text(CODE.replace('"pairs"', '"eagle2"'))
    (line,) = bench(f"plugins={plugins}", "algorithm=chain").lines
    assert line.startswith(
        "error: algorithm 'eagle2' is registered twice, by algorithms.eagle2 and treebench_plugin_pairs"
    )

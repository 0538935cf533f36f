"""Rules of the house: sizes, import direction, and what a data folder named `datasets` must not do."""

import ast
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("algorithms", "analysis", "backend", "runners")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MAX_FILE, MAX_KERNEL_FILE, MAX_FUNCTION = 250, 400, 40
MAY_IMPORT = {
    "backend": {"backend"},
    "algorithms": {"algorithms", "backend"},
    "runners": {"runners", "algorithms", "backend"},
    "analysis": {"analysis", "runners.records", "runners.store", "backend.errors"},
}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def too_long(path: Path, source: str) -> list[str]:
    limit = MAX_KERNEL_FILE if "ops" in path.parts else MAX_FILE
    lines = len(source.splitlines())
    found = [f"{lines} lines"] if lines > limit else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.end_lineno and node.end_lineno - node.lineno + 1 > MAX_FUNCTION:
            found.append(f"{node.name} has {node.end_lineno - node.lineno + 1} lines")
    return found


def imports_of(source: str) -> set[str]:
    modules: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module)
    return modules


def forbidden_imports(package: str, source: str) -> set[str]:
    ours = {module for module in imports_of(source) if module.split(".")[0] in PACKAGES}
    return {m for m in ours if not any(m == ok or m.startswith(f"{ok}.") for ok in MAY_IMPORT[package])}


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=name_of)
def test_files_and_functions_stay_short(path):
    assert too_long(path, path.read_text()) == []


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_go_one_way(path):
    assert forbidden_imports(path.relative_to(ROOT).parts[0], path.read_text()) == set()


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_every_module_says_what_it_is(path):
    if path.name != "__init__.py":
        assert ast.get_docstring(ast.parse(path.read_text()))


def test_the_rules_can_fail():
    assert forbidden_imports("backend", "from runners.store import read_runs") == {"runners.store"}
    assert forbidden_imports("analysis", "import runners.benchmark") == {"runners.benchmark"}
    assert too_long(Path("a.py"), "def f():\n" + "    x = 1\n" * 45) == ["f has 46 lines"]
    assert too_long(Path("a.py"), "x = 1\n" * 251) == ["251 lines"]


def test_hugging_face_datasets_is_not_shadowed():
    assert list((ROOT / "datasets").rglob("*.py")) == []
    spec = find_spec("datasets")
    assert spec is not None
    assert spec.origin is not None
    assert ROOT / "datasets" not in Path(spec.origin).parents


def test_only_the_prompt_loader_imports_hugging_face_datasets():
    assert [name_of(p) for p in SOURCES if "datasets" in imports_of(p.read_text())] == ["runners/prompts.py"]


@pytest.mark.parametrize("path", sorted((ROOT / "conf").rglob("*.yaml")), ids=name_of)
def test_every_config_file_begins_with_a_comment(path):
    assert path.read_text().startswith("#")


def compiled_functions(source: str) -> dict[str, ast.FunctionDef]:
    functions = (node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef))
    return {f.name: f for f in functions if any(getattr(d, "id", None) == "compiled" for d in f.decorator_list)}


def calls_of_other_files(source: str, compiled: set[str]) -> set[str]:
    """Compiled functions of other files that compiled ones call: their code on disk would outlive a change there."""
    own = compiled_functions(source)
    names = {node.id for function in own.values() for node in ast.walk(function) if isinstance(node, ast.Name)}
    return (names & compiled) - own.keys()


def test_compiled_functions_call_those_of_their_own_file_only():
    sources = [path.read_text() for path in SOURCES]
    compiled = {name for source in sources for name in compiled_functions(source)}
    assert {"best_places", "bins_of", "append"} <= compiled
    assert [calls_of_other_files(source, compiled) for source in sources] == [set()] * len(sources)


def test_a_call_of_another_files_compiled_function_is_found():
    source = "@compiled\ndef here(x):\n    return there(x)\n\ndef plain(x):\n    return elsewhere(x)\n"
    assert calls_of_other_files(source, {"here", "there", "elsewhere"}) == {"there"}

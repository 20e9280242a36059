"""The rules of the house: layers, types, style, docstrings, one clock, and a start without torch."""

import ast
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import tree

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "elaswave"
MODULES = sorted(PACKAGE.rglob("*.py"))
LONG_FILE_LINES = 500
LONG_FUNCTION_LINES = 60
CLOCK_READERS = {"time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns"}
TORCH_FREE = ["elaswave.cli.main", "elaswave.config", "elaswave.topology", "elaswave.events", "elaswave.telemetry.runs"]
TORCH_FREE += ["elaswave.cli.report", "elaswave.cli.verify", "elaswave.zero.layout", "elaswave.data.microbatch"]
TORCH_FREE += ["elaswave.coordination.membership", "elaswave.coordination.detector"]
TORCH_FREE += ["elaswave.cli.plan", "elaswave.models.shape", "elaswave.dvfs.backend", "elaswave.bench.planner"]
TORCH_FREE += ["elaswave.cli.simulate", "elaswave.bench.throughput"]
PURE_PACKAGES = ("elaswave.planner.", "elaswave.baselines.", "elaswave.simulator.", "elaswave.report.")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def check(*words: str) -> None:
    """Run a tool of the environment and show what it says when it complains."""
    tool = Path(sys.executable).parent / words[0]
    done = subprocess.run([str(tool), *words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}{done.stderr}"


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def test_layers():
    check("lint-imports", "--no-cache")


def test_types():
    check("pyrefly", "check")


def test_style():
    check("ruff", "check", "--no-cache", ".")


def test_format():
    check("ruff", "format", "--no-cache", "--check", ".")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_says_what_it_is_for(path):
    text = path.read_text(encoding="utf-8")
    if path.name == "__init__.py" and path.parent != PACKAGE:
        assert text.strip() == "", "package __init__ files stay empty, so that importing one module runs no other"
        return
    docstring = ast.get_docstring(parse(path))
    assert docstring, "no docstring"
    first = docstring.split("\n\n")[0]
    assert first.rstrip()[-1] in ".:)", f"the docstring's first paragraph is not a sentence: {first!r}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_the_command_line_prints(path):
    if path.parent.name == "cli":
        return
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"line {node.lineno}"


def clock_reads(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Every use of a function of `time` that reads a clock: its name and line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            yield from ((alias.name, node.lineno) for alias in node.names if alias.name in CLOCK_READERS)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in {f"time.{name}" for name in CLOCK_READERS}:
            yield node.attr, node.lineno


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_the_time_is_read_in_one_place(path):
    if path == PACKAGE / "clock.py":
        return
    allowed = CLOCK_READERS if PACKAGE / "bench" in path.parents else set()  # to measure is what benches are for
    found = [f"time.{name} in line {line}" for name, line in clock_reads(parse(path)) if name not in allowed]
    assert found == [], "take a Clock as an argument, or use elaswave.clock.SYSTEM"


def test_decisions_reports_and_the_command_start_without_torch():
    pure = [name_of(path).removesuffix(".py").replace("/", ".") for path in MODULES]
    pure = [name for name in pure if name.startswith(PURE_PACKAGES)]
    names = [name for name in [*TORCH_FREE, *pure] if not name.endswith(".__init__")]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, name + ' imports torch'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_tests_have_no_packages_and_no_two_files_of_one_name():
    files = sorted((ROOT / "tests").rglob("*.py"))
    assert [name_of(path) for path in files if path.name == "__init__.py"] == []
    names = [path.name for path in files if path.name.startswith("test_")]
    assert sorted(names) == sorted(set(names))


def test_long_files_and_functions_are_pointed_out():
    """Only points them out: sometimes long is right."""
    long: list[str] = []
    for path in MODULES:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > LONG_FILE_LINES:
            long.append(f"{name_of(path)}: {lines} lines")
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = (node.end_lineno or node.lineno) - node.lineno + 1
                if size > LONG_FUNCTION_LINES:
                    long.append(f"{name_of(path)}:{node.lineno} {node.name}: {size} lines")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        for line in long:
            warnings.warn(f"long: {line}", stacklevel=1)


def test_the_readme_has_a_phrase_for_every_file():
    assert tree.packages() == set(tree.PACKAGES)
    assert tree.in_readme() == tree.render(), "run: python tests/support/tree.py"

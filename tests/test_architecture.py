"""Arrows point inwards and never in a circle, and the package imports fast."""

from __future__ import annotations

import ast
import graphlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import textguide

ROOT = Path(__file__).parent.parent

# The rooms by the folder or file of their sources, from the rules up to the command; the longest name wins.
ROOMS = {
    "textguide/guidance": "guidance",
    "textguide/support": "support",
    "textguide/constraints": "constraints",
    "textguide/models": "models",
    "textguide/forward": "forward",
    "textguide/reference": "reference",
    "textguide/smc": "smc",
    "textguide/step": "step",
    "textguide/classifiers": "classifiers",
    "textguide/engine": "engine",
    "textguide/diffusion": "diffusion",
    "textguide/captioning": "captioning",
    "textguide/distillation": "distillation",
    "textguide": "functions",  # what users call: generate, score, explain, …
    "logits_processors": "logits_processors",
    "logits_processors/vllm_plugin": "vllm_plugin",
    "tasks": "tasks",
    "eval/statistics": "eval.statistics",
    "eval/results": "eval.results",
    "eval/reports": "eval.reports",
    "eval/lm_eval_models": "eval.lm_eval_models",
    "eval/captions": "eval.captions",
    "eval/sweeps": "eval.sweeps",
    "eval/replications": "eval.replications",
    "eval": "eval",
    "textguide/batch": "batch",
    "textguide/playground": "playground",
    "textguide/serving": "serving",
    "textguide/__main__": "cli",
    "textguide/cli": "cli",
}
_RUNS = {"guidance", "support", "constraints", "models", "forward", "smc", "classifiers", "step", "engine"}
_LOOPS = {*_RUNS, "diffusion", "captioning", "distillation", "functions"}
MAY_IMPORT: dict[str, set[str]] = {
    "guidance": {"support", "constraints"},
    "support": set(),
    "constraints": {"support"},
    "models": {"support", "forward"},
    "forward": {"support"},
    "reference": {"guidance"},
    "smc": {"guidance", "support", "constraints"},
    "step": {"guidance", "support"},
    "classifiers": {"guidance", "support", "constraints", "models", "forward"},
    "engine": _RUNS,
    "diffusion": {*_RUNS, "serving"},
    "captioning": _RUNS,
    "distillation": {*_RUNS, "functions"},
    "functions": {*_RUNS, "captioning"},
    "serving": {"guidance", "support", "constraints", "forward"},
    "playground": {*_LOOPS, "serving"},
    "batch": {*_RUNS, "functions", "vllm_plugin"},
    "logits_processors": {*_RUNS, "diffusion"},
    "vllm_plugin": {*_RUNS, "captioning", "serving"},
    "tasks": {"guidance", "support", "constraints"},
    "eval.statistics": {"support"},
    "eval.results": {"guidance", "support", "eval.statistics"},
    "eval.reports": {"support", "eval.statistics", "eval.results"},
    "eval.lm_eval_models": {*_LOOPS, "vllm_plugin", "tasks", "eval.results"},
    "eval.captions": {*_LOOPS, "tasks", "eval.statistics", "eval.results", "eval.reports"},
    "eval.sweeps": {*_LOOPS, "tasks", "eval.statistics", "eval.results", "eval.reports", "eval.lm_eval_models"},
    "eval.replications": {*_LOOPS, "tasks", "eval.statistics", "eval.results", "eval.reports", "eval.sweeps"},
    "eval": {
        "eval.statistics",
        "eval.results",
        "eval.reports",
        "eval.lm_eval_models",
        "eval.captions",
        "eval.sweeps",
    },
    "cli": {
        *_LOOPS,
        "batch",
        "playground",
        "serving",
        "logits_processors",
        "vllm_plugin",
        "tasks",
        "eval",
        "eval.captions",
        "eval.sweeps",
        "eval.replications",
    },
}
"""What each room imports beside itself; a room stands below all that import it."""
BARE = {"eval", "tasks", "logits_processors"}


def sources() -> list[Path]:
    return sorted(path for folder in ("textguide", *BARE) for path in (ROOT / folder).rglob("*.py"))


def module_of(path: Path) -> str:
    """The name that ``path`` is imported by; that of its folder for an ``__init__.py``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "textguide" else ("textguide", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_of(path: Path) -> str:
    """The package that relative imports in ``path`` start from."""
    module = module_of(path)
    return module if path.name == "__init__.py" else module.rpartition(".")[0]


def room_of_module(module: str) -> str | None:
    """The room of a module, or of a name in one; None where it is not ours."""
    parts = module.split(".")
    if parts[0] != "textguide":
        return None
    if len(parts) > 1 and parts[1] in textguide._HOMES:
        parts = ["textguide", *textguide._HOMES[parts[1]].split(".")]
    names = parts[1:] if len(parts) > 1 and parts[1] in BARE else parts
    return next(room for end in range(len(names), 0, -1) if (room := ROOMS.get("/".join(names[:end]))) is not None)


def imported(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """Every module (or attribute of one) that the code names in an import, absolute, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parts, *filter(None, [node.module])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def violations(code: str, package: str, module: str) -> list[str]:
    room = room_of_module(module)
    assert room is not None
    may = {room, *MAY_IMPORT[room]}
    found = []
    for line, name in imported(ast.parse(code), package):
        if name.split(".")[0] in BARE:
            found.append(f"{line}: bare import of {name}")
        target = room_of_module(name)
        if target is not None and target not in may:
            found.append(f"{line}: {room} imports {name}")
    return found


# The one file that names every room: it imports them on first use.
@pytest.mark.parametrize(
    "path",
    [path for path in sources() if path != ROOT / "textguide" / "__init__.py"],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_arrows_point_inwards(path: Path) -> None:
    assert violations(path.read_text(), package_of(path), module_of(path)) == []


@pytest.mark.parametrize(
    ("code", "module"),
    [
        ("from ..engine.loop import decode", "textguide.guidance.cfg"),
        ("from .. import generation", "textguide.guidance.cfg"),
        ("import textguide.forward.row_batch", "textguide.guidance.cfg"),
        ("from textguide import generate", "textguide.guidance.cfg"),
        ("from ..guidance import CFG", "textguide.support.files"),
        ("from ..guidance import CFG", "textguide.forward.row_batch"),
        ("from ..engine import loop", "textguide.forward.prefill"),
        ("from ..engine import loop", "textguide.classifiers.causal"),
        ("from ..captioning import caption", "textguide.engine.loop"),
        ("def f():\n    from .cli import main", "textguide.scoring"),
        ("from . import logits_processors", "textguide.generation"),
        ("from textguide import CFGLogitsProcessor", "textguide.generation"),
        ("from textguide.eval import sweep", "textguide.generation"),
        ("from ..cli import options", "textguide.logits_processors.hf"),
        ("from ..tasks import sudoku", "textguide.logits_processors.hf"),
        ("from ..hf import CFGLogitsProcessor", "textguide.logits_processors.vllm_plugin.engine"),
        ("from ..eval import sweep", "textguide.tasks.sudoku"),
        ("from ..reports import plots", "textguide.eval.results.run"),
        ("import eval", "textguide.cli.options"),
        ("from tasks.sudoku import board", "textguide.eval.sweeps.sweep"),
        ("from logits_processors import CFGLogitsProcessor", "textguide.cli.options"),
    ],
)
def test_wrong_arrows_are_seen(code: str, module: str) -> None:
    assert len(violations(code, module.rpartition(".")[0], module)) == 1


@pytest.mark.parametrize(
    ("code", "module"),
    [
        ("from .base import Branch\nfrom . import algebra", "textguide.guidance.cfg"),
        ("from .guidance import CFG\nimport torch", "textguide.generation"),
        ("from textguide.engine import branch_inputs", "textguide.logits_processors.hf"),
        ("from textguide import CFG", "textguide.logits_processors.hf"),
        ("from ..models import load\nfrom ..support import __version__", "textguide.cli.options"),
        ("import textguide", "textguide.eval.sweeps.sweep"),
    ],
)
def test_right_arrows_are_allowed(code: str, module: str) -> None:
    assert violations(code, module.rpartition(".")[0], module) == []


def test_rooms_stand_on_each_other_without_a_circle() -> None:
    assert [name for name, room in ROOMS.items() if MAY_IMPORT[room] - MAY_IMPORT.keys()] == []
    order = graphlib.TopologicalSorter({room: may - {room} for room, may in MAY_IMPORT.items()})
    floors: dict[str, int] = {}
    for room in order.static_order():
        floors[room] = 1 + max((floors[below] for below in MAY_IMPORT[room] - {room}), default=0)
    assert floors.keys() == set(ROOMS.values())
    assert max(floors.values()) <= 12, floors


def test_every_source_is_looked_at() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in sources()}
    assert {"textguide/guidance/cfg.py", "textguide/engine/loop.py", "logits_processors/hf.py"} <= names
    assert room_of_module("textguide.guidance.cfg") == room_of_module("textguide.CFG") == "guidance"
    assert room_of_module("textguide.engine.speculation.value.Speculation") == "engine"
    assert room_of_module("textguide.scoring") == room_of_module("textguide.explanation.steps") == "functions"
    assert room_of_module("textguide.logits_processors.vllm_plugin.engine") == "vllm_plugin"
    assert room_of_module("torch.nn") is None


def import_graph(files: Mapping[str, tuple[str, str]]) -> dict[str, set[str]]:
    """Module → modules that it imports anywhere: also inside functions, and for type checkers alone.

    Args:
        files: module → its code and the package that its relative imports start from.
    """
    graph: dict[str, set[str]] = {}
    for module, (code, package) in files.items():
        names = {name for _, name in imported(ast.parse(code), package)}
        found = {name if name in files else name.rpartition(".")[0] for name in names}
        graph[module] = (found & files.keys()) - {module}
    return graph


def circles(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """The groups of modules in which each reaches each other by imports."""
    reached: dict[str, set[str]] = {}
    for module in graph:
        seen, waiting = set[str](), list(graph[module])
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting += graph[name]
        reached[module] = seen
    groups = {frozenset(other for other in reached[name] if name in reached[other]) for name in graph}
    return sorted((set(group) for group in groups if group), key=sorted)


def test_no_imports_run_in_a_circle() -> None:
    files = {module_of(path): (path.read_text(), package_of(path)) for path in sources()}
    # It re-exports what the rooms have, on first use.
    del files["textguide"]
    assert circles(import_graph(files)) == []


@pytest.mark.parametrize("folder", ["bench", "site", "study", "train"])
def test_no_imports_of_scripts_run_in_a_circle(folder: str) -> None:
    # A script imports its neighbours by their bare names.
    files = {path.stem: (path.read_text(), "") for path in (ROOT / "scripts" / folder).glob("*.py")}
    assert files
    assert circles(import_graph(files)) == []


def test_circles_are_seen() -> None:
    files = {
        "p": ("from .a import f", "p"),
        "p.a": ("def f():\n    from . import b", "p"),
        "p.b": ("if TYPE_CHECKING:\n    from .c.d import x", "p"),
        "p.c": ("", "p.c"),
        "p.c.d": ("import p.a\nfrom . import e", "p.c"),
        "p.c.e": ("import torch", "p.c"),
        "p.f": ("from p import a", "p"),
    }
    graph = import_graph(files)
    assert graph["p.c.d"] == {"p.a", "p.c.e"}
    assert circles(graph) == [{"p.a", "p.b", "p.c.d"}]
    assert circles({**graph, "p.b": set()}) == []
    # A package that re-exports from a module, and a module that imports from that package.
    assert circles(import_graph({**files, "p.b": ("from p import g", "p")})) == [{"p", "p.a", "p.b"}]


def test_the_package_is_seen_at_a_glance() -> None:
    entries = [path.name for path in (ROOT / "textguide").iterdir() if path.name not in ("__pycache__", "py.typed")]
    assert len(entries) <= 25, sorted(entries)


def test_every_package_is_installed() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    listed = re.findall(r'^  "(textguide[.\w]*)",$', text, re.MULTILINE)
    assert listed == sorted({package_of(path) for path in sources() if path.name == "__init__.py"})


def test_no_file_is_named_after_a_dependency() -> None:
    taken = {
        "torch",
        "transformers",
        "vllm",
        "lm_eval",
        "rich",
        "filelock",
        "gguf",
        "accelerate",
        "safetensors",
    }
    assert [path for path in sources() if path.stem in taken] == []


_FRESH = """
import json, sys
import textguide
heavy = [m for m in ("torch", "transformers", "vllm", "lm_eval", "numpy", "rich") if m in sys.modules]
print(json.dumps({"heavy": heavy, "names": textguide.__all__, "dir": dir(textguide)}))
for name in textguide.__all__:
    assert getattr(textguide, name) is not None, name
assert not {"vllm", "lm_eval"} & set(sys.modules)
from textguide import *
assert load is textguide.load and CFG is textguide.CFG
"""


def test_importing_loads_nothing_heavy_and_every_name_resolves() -> None:
    done = subprocess.run([sys.executable, "-c", _FRESH], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["heavy"] == []
    assert report["names"] == textguide.__all__
    assert set(report["names"]) <= set(report["dir"])


def test_public_names_are_those_for_type_checkers() -> None:
    tree = ast.parse((ROOT / "textguide" / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert {name for name, module in typed.items() if module is None} == set(textguide._MODULES)
    assert {name: module for name, module in typed.items() if module is not None} == textguide._HOMES
    assert ["__version__", *sorted(textguide._HOMES)] == textguide.__all__


def test_unknown_names() -> None:
    with pytest.raises(AttributeError, match="'no_such_name'"):
        _ = textguide.no_such_name
    assert not hasattr(textguide, "Cfg")

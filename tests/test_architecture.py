"""Arrows point inwards, files stay small, and the package imports fast."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import textguide

ROOT = Path(__file__).parent.parent
LONGEST = 450

# Rooms by the folder of their sources. The first that matches wins.
FOLDERS = {
    "textguide/guidance": "guidance",
    "textguide/cli": "cli",
    "textguide": "core",
    "logits_processors": "logits_processors",
    "tasks": "tasks",
    "eval": "eval",
}
MAY_IMPORT = {
    "guidance": {"guidance"},
    "core": {"core", "guidance"},
    "logits_processors": {"logits_processors", "core", "guidance"},
    "tasks": {"tasks", "core", "guidance", "logits_processors"},
    "eval": {"eval", "tasks", "core", "guidance", "logits_processors"},
    "cli": {"cli", "core", "guidance", "logits_processors", "tasks", "eval"},
}
BARE = {"eval", "tasks", "logits_processors"}


def sources() -> list[Path]:
    return sorted(path for folder in ("textguide", *BARE) for path in (ROOT / folder).rglob("*.py"))


def room_of(path: Path) -> str:
    folder = path.relative_to(ROOT).parent.as_posix()
    return next(room for prefix, room in FOLDERS.items() if f"{folder}/".startswith(f"{prefix}/"))


def package_of(path: Path) -> str:
    """The package that relative imports in ``path`` start from."""
    parts = path.relative_to(ROOT).parent.parts
    return ".".join(parts if parts[0] == "textguide" else ("textguide", *parts))


def room_of_module(module: str) -> str | None:
    parts = module.split(".")
    if parts[0] != "textguide":
        return None
    if len(parts) > 1 and parts[1] in MAY_IMPORT:
        return parts[1]
    return "core"


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


def violations(code: str, package: str, room: str, lazy: bool = False) -> list[str]:
    found = []
    for line, module in imported(ast.parse(code), package):
        if module.split(".")[0] in BARE:
            found.append(f"{line}: bare import of {module}")
        target = room_of_module(module)
        if target is not None and target not in MAY_IMPORT[room] and not lazy:
            found.append(f"{line}: {room} imports {module}")
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_arrows_point_inwards(path: Path) -> None:
    # The one file that names every room: it imports them on first use.
    lazy = path == ROOT / "textguide" / "__init__.py"
    assert violations(path.read_text(), package_of(path), room_of(path), lazy) == []


@pytest.mark.parametrize(
    ("code", "package", "room"),
    [
        ("from ..decode import decode", "textguide.guidance", "guidance"),
        ("from .. import decode", "textguide.guidance", "guidance"),
        ("import textguide.forward.row_batch", "textguide.guidance", "guidance"),
        ("from textguide import CFG", "textguide.guidance", "guidance"),
        ("def f():\n    from .cli import main", "textguide", "core"),
        ("from . import logits_processors", "textguide", "core"),
        ("from textguide.eval import sweep", "textguide", "core"),
        ("from ..cli import options", "textguide.logits_processors", "logits_processors"),
        ("from ..tasks import sudoku", "textguide.logits_processors", "logits_processors"),
        ("from ..eval import sweep", "textguide.tasks", "tasks"),
        ("import eval", "textguide.cli", "cli"),
        ("from tasks.sudoku import board", "textguide.eval", "eval"),
        ("from logits_processors import CFGLogitsProcessor", "textguide.cli", "cli"),
    ],
)
def test_wrong_arrows_are_seen(code: str, package: str, room: str) -> None:
    assert len(violations(code, package, room)) == 1


def test_right_arrows_are_allowed() -> None:
    assert violations("from .base import Branch\nfrom . import algebra", "textguide.guidance", "guidance") == []
    assert violations("from .guidance import CFG\nimport torch", "textguide", "core") == []
    assert violations("from textguide import branches", "textguide.logits_processors", "logits_processors") == []
    assert violations("from ..models import load", "textguide.cli", "cli") == []


def test_every_source_is_looked_at() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in sources()}
    assert {"textguide/guidance/cfg.py", "textguide/engine/loop.py", "logits_processors/hf.py"} <= names
    assert room_of(ROOT / "textguide/guidance/cfg.py") == "guidance"
    assert room_of(ROOT / "textguide/engine/loop.py") == "core"
    assert room_of(ROOT / "logits_processors/hf.py") == "logits_processors"


def test_files_stay_small() -> None:
    every = [*sources(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in every}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


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
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed == textguide._HOMES
    assert [*sorted(typed), "__version__"] == textguide.__all__


def test_unknown_names() -> None:
    with pytest.raises(AttributeError, match="'no_such_name'"):
        _ = textguide.no_such_name
    assert not hasattr(textguide, "Cfg")

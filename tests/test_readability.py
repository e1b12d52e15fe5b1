"""Functions that can be read: few branches each, one statement per line, files with an end."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PRODUCT = ("textguide", "logits_processors", "tasks", "eval", "scripts")
COMPLEXITY = 15
LONGEST = 900
BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.Assert, ast.match_case)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

# Functions above the limit, each with the reason. At most 15.
PLAIN_LOOP = "a reference implementation: one loop that can be compared with its paper line by line"
EXCEPTIONS: dict[str, str] = {
    "textguide/reference/samplers.py:_next_states": PLAIN_LOOP,
    "textguide/reference/samplers.py:distribution": PLAIN_LOOP,
    "textguide/reference/diffusion.py:combined": PLAIN_LOOP,
    "textguide/reference/decoding.py:schedule_multiplier": "one line per schedule, each its definition",
    "textguide/reference/decoding.py:part_log_probs": PLAIN_LOOP,
}
# `# fmt: skip` is for tables of data.
UNFORMATTED = 25


def complexity(function: ast.AST) -> int:
    """Cyclomatic complexity: 1, and 1 for every branch, loop, handler, condition, and further operand of and/or."""
    total = 1
    for node in ast.walk(function):
        if node is not function and isinstance(node, FUNCTIONS):
            total += 1
        if isinstance(node, BRANCHES):
            total += 1
        if isinstance(node, (ast.For, ast.While, ast.Try)) and node.orelse:
            total += 1
        if isinstance(node, ast.BoolOp):
            total += len(node.values) - 1
        if isinstance(node, ast.comprehension):
            total += 1 + len(node.ifs)
    return total


def files() -> Iterator[Path]:
    for folder in PRODUCT:
        yield from sorted((ROOT / folder).rglob("*.py"))


def test_functions_have_few_branches() -> None:
    above = {}
    for path in files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, FUNCTIONS) and complexity(node) > COMPLEXITY:
                above[f"{path.relative_to(ROOT).as_posix()}:{node.name}"] = complexity(node)
    assert above.keys() == EXCEPTIONS.keys(), above
    assert len(EXCEPTIONS) <= 15


def test_the_count_knows_its_branches() -> None:
    source = """
def f(a, b):
    if a and b or not a:
        return [x for x in b if x]
    for x in b:
        assert x
    else:
        return 1 if a else 2
"""
    # 1, if, and + or, comprehension with a condition, for with else, assert, conditional expression
    assert complexity(ast.parse(source).body[0]) == 1 + 1 + 2 + 2 + 2 + 1 + 1


def test_files_end() -> None:
    every = [*files(), *(ROOT / "tests").rglob("*.py")]
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in every}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def test_lines_are_formatted() -> None:
    lines = sum(path.read_text(encoding="utf-8").count("# fmt: skip") for path in files() if path.parts[-2] != "train")
    assert lines <= UNFORMATTED

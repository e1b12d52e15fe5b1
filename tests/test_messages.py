"""What messages and docstrings name exists: modules, classes, extras, commands and options."""

from __future__ import annotations

import argparse
import ast
import builtins
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tomllib

import textguide
from textguide import classifiers, constraints, diffusion, guidance
from textguide.cli import build_parser

ROOT = Path(__file__).parent.parent
ROOMS = ("textguide", "eval", "tasks", "logits_processors")
PUBLIC = (textguide, guidance, classifiers, constraints, diffusion, builtins)
FILE_NAMES = {"textguide.json", "textguide.html", "textguide.completion.csh"}


def texts() -> Iterator[tuple[str, str]]:
    """Every text in the source with its place; a value in it is a question mark."""
    for room in ROOMS:
        for file in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                place = f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else "?" for part in node.values]
                    yield place, "".join(map(str, parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield place, node.value


def raised() -> Iterator[tuple[str, str]]:
    """The texts of ``raise`` and ``warn`` statements."""
    for room in ROOMS:
        for file in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Raise) or (
                    isinstance(node, ast.Call) and ast.unparse(node.func) == "warnings.warn"
                ):
                    for part in ast.walk(node):
                        if isinstance(part, ast.Constant) and isinstance(part.value, str):
                            yield f"{file.relative_to(ROOT)}:{node.lineno}", part.value


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:count]))
        except ImportError:
            continue
        for part in parts[count:]:
            if not hasattr(found, part):
                return in_the_plugin(name)
            found = getattr(found, part)
        return True
    return False


def in_the_plugin(name: str) -> bool:
    """Whether it is a module or a class of the vLLM plugin, parts of which only import with vLLM."""
    path = ROOT / name.removeprefix("textguide.").replace(".", "/")
    if path.with_suffix(".py").is_file():
        return True
    module = path.parent.with_suffix(".py")
    return module.is_file() and re.search(rf"^class {path.name}\b", module.read_text(), re.MULTILINE) is not None


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    found = set()
    for action in parser._actions:
        found |= set(action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                found |= options_of(below)
    return found


def test_modules_and_their_names_exist() -> None:
    missing = {}
    for place, text in texts():
        for name in re.findall(r"(?<![\w/.])textguide(?:\.[A-Za-z_]\w*)+", text):
            if name not in FILE_NAMES and not exists(name):
                missing[place] = name
    assert missing == {}


def test_classes_in_messages_are_public() -> None:
    missing = {}
    for place, text in raised():
        for name in re.findall(r"(?<![\w.])([A-Z][a-z]+[A-Z]\w+|[A-Z]{2,}\w*[a-z]\w*)\(", text):
            if not any(hasattr(module, name) for module in PUBLIC):
                missing[place] = name
    assert missing == {}


def test_extras_in_messages_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = set()
    for room in ROOMS:
        for file in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "MissingExtraError":
                    extra = node.args[1]
                    named |= {extra.value} if isinstance(extra, ast.Constant) else set()
    for _, text in texts():
        for group in re.findall(r"textguide\[([\w,]+)\]", text):
            named |= set(group.split(","))
    assert named - {"EXTRA"} <= set(extras)


def test_commands_and_options_in_messages_exist() -> None:
    parser = build_parser()
    commands = next(action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    known = options_of(parser) | {"--merge"}  # an option of llama.cpp's gguf-split
    # The server of canvases makes its parser when it runs.
    serve = (ROOT / "textguide/cli/serve_command.py").read_text(encoding="utf-8")
    known |= set(re.findall(r'"(--[a-z-]+)"', serve))
    missing = {}
    for place, text in raised():
        if place.startswith("logits_processors/vllm_plugin"):
            continue  # options of vLLM's server
        for name in re.findall(r"[`']textguide ([a-z][a-z-]+)", text):
            if name not in commands:
                missing[place] = name
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text):
            if option not in known:
                missing[place] = option
    assert missing == {}

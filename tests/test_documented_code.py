"""The code in the documentation runs: all code of the guides, and the Python code of every other page.

The Python blocks of a page share their names, and its ``textguide`` lines run in the same folder. A block that cannot
run has a comment with the reason before it, ``<!-- not run: … -->``, and is only compiled.
"""

from __future__ import annotations

import ast
import functools
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

import textguide
from textguide import cli, generation
from textguide.cli import options
from textguide.diffusion import block_adapters  # noqa: F401  # it checks the fingerprint of the real model
from textguide.guidance import Guidance
from textguide.models import loading

from .marks import NEEDS_SMOLLM2

DOCS = Path(__file__).parents[1] / "docs"
PAGES = [DOCS / "start.md", *sorted((DOCS / "guides").glob("*.md")), *sorted((DOCS / "coming-from").glob("*.md"))]
_BLOCK = re.compile(r"(?:<!-- not run: ([^>]+) -->\n)?^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """Language, code and the reason not to run it (or nothing), of every block in a page."""
    return [(kind, code, why) for why, kind, code in _BLOCK.findall(page.read_text(encoding="utf-8"))]


def commands(code: str) -> list[str]:
    """The lines of a shell block, without comments; a line that ends in a backslash goes on."""
    lines = code.replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"\s+#.*", "", line).strip() for line in lines) if line and line[0] != "#"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a page's code runs; models are loaded once for all pages."""
    import transformers.dynamic_module_utils as modules

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Guidance, "registry", dict(Guidance.registry))  # methods of the pages go with them
    monkeypatch.setattr(modules, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(loading, "load", _load)
    monkeypatch.setattr(textguide, "load", _load, raising=False)
    return tmp_path


_real_load = loading.load


@functools.lru_cache(maxsize=4)
def _load(name: str = "smollm2", **named: Any) -> Any:
    """A model with the same tokens in place of SmolLM2, which is several times as fast."""
    return _real_load("smollm2-small" if name == "smollm2" else name, **named)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
class TestPages:
    pytestmark = NEEDS_SMOLLM2

    def test_the_code_of_a_page_runs(self, page: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        names: dict[str, Any] = {"__name__": "page"}
        for kind, code, why in blocks(page):
            assert kind in ("python", "bash", "text"), f"{kind}: a block of this kind is run by nobody"
            if kind == "python":
                compiled = compile(code, f"{page.name}", "exec", dont_inherit=True)
                if not why:
                    exec(compiled, names)
            elif kind == "bash" and not why:
                for line in commands(code):
                    run(line, folder)


GUIDES = {*PAGES}
OTHERS = [
    page
    for page in [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md")), *sorted((DOCS / "methods").glob("*.md"))]
    if page not in GUIDES
    and any(kind == "python" and not why and ">>>" not in code for kind, code, why in blocks(page))
]


@pytest.fixture
def given(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that pages about one thing take as given, with small models behind them; texts that are not told how
    long to be are short."""
    monkeypatch.setattr(generation, "LONGEST", 12)  # a date has 11 tokens
    model, tokenizer = _load("smollm2")
    others = {name: _load(f"smollm2-small-{name}")[0] for name in ("positive", "negative")}
    prompts = ["The dragon flew over Paris,", "Once upon a time there"]
    return {
        "__name__": "page", "textguide": textguide, "model": model, "tokenizer": tokenizer, "prompts": prompts,
        "prompt": prompts[0], "chats": [[{"role": "user", "content": text}] for text in prompts],
        "inputs": tokenizer(prompts[:1], return_tensors="pt"), "contexts": prompts, "continuations": [" a", " lived"],
        "token": tokenizer("2").input_ids[0], "large": model, "small": others["positive"],
        "kind": others["positive"], "rude": others["negative"], "reward": others["positive"],
        "small_chat": others["positive"], "small_base": others["negative"],
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", OTHERS, ids=lambda page: page.relative_to(DOCS.parent).as_posix())
class TestOtherPages:
    pytestmark = NEEDS_SMOLLM2

    def test_the_python_of_a_page_runs(self, page: Path, given: dict[str, Any]) -> None:
        for kind, code, why in blocks(page):
            if kind == "python" and ">>>" not in code and not why:
                exec(compile(code, page.name, "exec", dont_inherit=True), given)


def run(line: str, folder: Path) -> None:
    """One line of a shell block: textguide's commands in this process, others in a shell."""
    if line.startswith("textguide "):
        assert cli.main(shlex.split(line)[1:]) == 0, line
    else:
        subprocess.run(["bash", "-c", line], cwd=folder, check=True, timeout=60)


def test_commands_of_a_block_are_seen() -> None:
    assert commands("# no\ntextguide a \\\n  --b 'c d'  # why\n\nls\n") == ["textguide a    --b 'c d'", "ls"]


def test_blocks_and_reasons_are_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("text\n```python\na\n```\n<!-- not run: slow -->\n```bash\nb\nc\n```\n")
    assert blocks(page) == [("python", "a\n", ""), ("bash", "b\nc\n", "slow")]


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.relative_to(DOCS).as_posix())
def test_python_in_every_page_is_python(page: Path) -> None:
    for kind, code, _ in blocks(page):
        if kind == "python" and ">>>" not in code:
            ast.parse(code)


def test_the_options_of_the_command_line_are_those_of_the_pages() -> None:
    """The loader that the command line takes is the one that is replaced here."""
    assert "from ..models.loading import load" in Path(options.__file__).read_text(encoding="utf-8")

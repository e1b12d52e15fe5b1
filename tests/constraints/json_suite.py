"""The official JSON Schema test suite, run with :class:`JSONSchema`, counted by draft.

``python -m tests.constraints.json_suite`` prints the table; ``--json FILE`` writes it too.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from textguide.constraints import JSONSchema, UnsatisfiableError

from .walks import BYTES

FOLDER = Path(__file__).parent / "json_schema_suite"
DRAFTS = ("draft4", "draft6", "draft7", "draft2019-09", "draft2020-12")
REQUIRED = "required"
FORMATS = "formats"
HOST = "http://localhost:1234/"
"""The address under which the suite's schemas refer to ``remotes``."""
URIS = {
    "draft4": "http://json-schema.org/draft-04/schema#",
    "draft6": "http://json-schema.org/draft-06/schema#",
    "draft7": "http://json-schema.org/draft-07/schema#",
    "draft2019-09": "https://json-schema.org/draft/2019-09/schema",
    "draft2020-12": "https://json-schema.org/draft/2020-12/schema",
}


@dataclass
class Counts:
    """What happened in one part of the suite.

    ``schemas`` have no reference to ``remotes``; those that have one are ``remote_schemas``. A schema that is said to
    be unsatisfiable counts as loaded, and refuses its documents.
    """

    schemas: int = 0
    loaded: int = 0
    remote_schemas: int = 0
    remote_loaded: int = 0
    valid: int = 0
    accepted: int = 0
    invalid: int = 0
    rejected: int = 0
    wrong_accepts: list[str] = field(default_factory=list)
    wrong_rejects: list[str] = field(default_factory=list)
    crashes: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


@lru_cache(maxsize=1)
def remotes() -> dict[str, Any]:
    """The documents of ``remotes`` by their address."""
    folder = FOLDER / "remotes"
    found = {}
    for path in sorted(folder.rglob("*.json")):
        found[HOST + path.relative_to(folder).as_posix()] = json.loads(path.read_text(encoding="utf-8"))
    return found


def cases(draft: str, part: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The cases of one part, each with its name."""
    folder = FOLDER / "tests" / draft
    if part == FORMATS:
        folder = folder / "optional" / "format"
    for path in sorted(folder.glob("*.json")):
        for case in json.loads(path.read_text(encoding="utf-8")):
            yield f"{draft}/{path.stem}: {case['description']}", case


def constraint(schema: Any, draft: str, part: str) -> JSONSchema:
    """The constraint for a schema of the suite, which knows the suite's other documents."""
    return JSONSchema(
        schema,
        whitespace="any",
        draft=draft.removeprefix("draft"),
        schemas=remotes() if HOST in json.dumps(schema) else None,
        assert_formats=part == FORMATS,
    )


def document(value: Any) -> bytes:
    """A document as it is written."""
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(value).encode()


def run(draft: str, part: str) -> Counts:
    """Run one part of the suite."""
    counts = Counts()
    for name, case in cases(draft, part):
        _run_case(counts, name, case, draft, part)
    return counts


def _run_case(counts: Counts, name: str, case: dict[str, Any], draft: str, part: str) -> None:
    is_remote = HOST in json.dumps(case["schema"])
    if is_remote:
        counts.remote_schemas += 1
    else:
        counts.schemas += 1
    session = None
    try:
        session = constraint(case["schema"], draft, part).start(BYTES)
    except UnsatisfiableError:
        pass
    except ValueError as error:
        counts.refused.append(f"{name}: {error}")
        return
    except Exception as error:
        counts.crashes.append(f"{name}: {type(error).__name__}: {error}")
        return
    if is_remote:
        counts.remote_loaded += 1
    else:
        counts.loaded += 1
    for test in case["tests"]:
        _run_test(counts, f"{name}: {test['description']}", session, test)


def _run_test(counts: Counts, name: str, session: Any, test: dict[str, Any]) -> None:
    text = document(test["data"])
    try:
        accepted = session is not None and session.is_prefix(text) and session.is_complete(text)
    except Exception as error:
        counts.crashes.append(f"{name}: {type(error).__name__}: {error}")
        return
    if test["valid"]:
        counts.valid += 1
        counts.accepted += accepted
        if not accepted:
            counts.wrong_rejects.append(name)
    else:
        counts.invalid += 1
        counts.rejected += not accepted
        if accepted:
            counts.wrong_accepts.append(name)


def table(results: dict[str, Counts]) -> str:
    """The counts as a Markdown table."""
    header = "| part | schemas loaded | with remote references | valid accepted | invalid rejected | wrong accepts "
    lines = [f"{header}| crashes |", "|---|---|---|---|---|---|---|"]
    for name, counts in results.items():
        remote = f"{counts.remote_loaded} / {counts.remote_schemas}"
        lines.append(
            f"| {name} | {counts.loaded} / {counts.schemas} | {remote} | {counts.accepted} / {counts.valid} "
            f"| {counts.rejected} / {counts.invalid} | {len(counts.wrong_accepts)} | {len(counts.crashes)} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the suite and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the counts to this file")
    parser.add_argument("--verbose", action="store_true", help="name every case that is not as the suite says")
    arguments = parser.parse_args()
    started = time.monotonic()
    results = {}
    for draft in DRAFTS:
        for part in (REQUIRED, FORMATS):
            results[f"{draft} {part}"] = run(draft, part)
    print(table(results))
    print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)
    if arguments.verbose:
        for counts in results.values():
            for kind in ("crashes", "wrong_accepts", "wrong_rejects", "refused"):
                for name in getattr(counts, kind):
                    print(f"{kind}: {name}", file=sys.stderr)
    if arguments.json:
        values = {name: asdict(counts) for name, counts in results.items()}
        arguments.json.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

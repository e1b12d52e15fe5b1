"""``textguide doctor``."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
from pathlib import Path
from typing import Any

from .parser import add_command

INSTALLED = "installed"


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = add_command(
        commands,
        "doctor",
        description="Show versions, devices, extras and caches, and what is missing; or what is known about a model.",
        examples=("doctor", "doctor --json", "doctor smollm2"),
    )
    parser.add_argument(
        "model", nargs="?", help="a model, by name or folder: show what padding, chunks and later tokens do to it"
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the report; nothing is loaded, downloaded or changed, unless a model is named."""
    report: dict[str, Any] = examine() if arguments.model is None else examine_model(arguments.model)
    if arguments.json:
        print(json.dumps(report, ensure_ascii=False, indent=1))
        return 0
    if arguments.model is not None:
        for name, value in report.items():
            print(f"{name}: {value}")
        return 0
    for title in ("versions", "devices", "caches"):
        print(f"{title}:")
        for name, value in report[title].items():
            print(f"  {name}: {value}")
    print("extras:")
    for name, extra in report["extras"].items():
        state = f"lacks {', '.join(extra['missing'])}" if extra["missing"] else INSTALLED
        print(f"  {name}: {state}")
    print("missing:" if report["missing"] else "nothing is missing")
    for line in report["missing"]:
        print(f"  {line}")
    return 0


def examine() -> dict[str, Any]:
    """The report as plain values: ``versions``, ``devices``, ``extras``, ``caches``, ``missing``."""
    from ..models import bundled
    from ..support import files

    extras = _extras()
    missing = _missing_files()
    missing += [f"{name}: pip install 'textguide[{name}]'" for name, one in extras.items() if one["missing"]]
    try:
        bundled.gguf_path()
    except Exception as error:
        missing.append(f"the model smollm2: {error}")
    data = os.environ.get("TEXTGUIDE_DATA")
    if not data:
        missing.append("TEXTGUIDE_DATA is not set: tasks load their data from the hub (textguide eval --list)")
    elif not Path(data).is_dir():
        missing.append(f"TEXTGUIDE_DATA={data} is not a folder")
    caches = {"converted models": _size(files.cache_root()), "hub": _size(_hub()), "TEXTGUIDE_DATA": data or "–"}
    return {"versions": _versions(), "devices": _devices(), "extras": extras, "caches": caches, "missing": missing}


def examine_model(name: str) -> dict[str, str]:
    """What is known about a model, and whether it is shipped or was probed."""
    from ..forward import facts, probes
    from ..forward.model_adapter import adapter
    from ..models.loading import load

    model, _ = load(name)
    known = adapter(model)
    found = {"class": known.name, "switches": json.dumps(facts.switches(known.base.config))}
    try:
        padding = known.padding
    except ValueError as error:
        return {**found, "refused": str(error)}
    longest = probes.reach(known)
    source = f"shipped with textguide, established with transformers {_version('transformers')}"
    if known.shipped is None:
        length = probes.probe_length(known)
        source = f"probed now, with {length} tokens"
        if length <= longest:
            source += "; more would take too long, so that longer windows and chunks were not reached"
    switch = known.rotary_switch
    return {
        **found,
        "source": source,
        "padding": padding.value,
        "several tokens in one pass": _yes(known.reads_chunks),
        "causal": _yes(known.is_causal),
        "long prompts in chunks": _yes_or(known.why_not_in_chunks(1, 1)),
        "rows keep their own lengths": _yes_or(known.stays_padded),
        "longest window or chunk": f"{longest} tokens" if longest else "none",
        "rotary embeddings change after": "no length" if switch is None else f"{switch} tokens",
    }


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _yes_or(reason: str) -> str:
    """``yes`` if there is no reason against it."""
    return f"no: {reason}" if reason else "yes"


def _missing_files() -> list[str]:
    """What the installed package should contain, and does not."""
    absent = [
        str(file) for file in importlib.metadata.files("textguide") or () if not Path(str(file.locate())).exists()
    ]
    absent = [name for name in absent if not name.endswith(".pyc")]
    if not absent:
        return []
    return [f"{len(absent)} files of textguide, such as {absent[0]}: install textguide again"]


def _versions() -> dict[str, str]:
    names = ("textguide", "torch", "transformers", "accelerate", "vllm", "lm_eval")
    versions = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for name in names:
        version = _version(name)
        if version is not None:
            versions[name] = version
    return versions


def _devices() -> dict[str, str]:
    import torch

    devices = {"cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"}
    for number in range(torch.cuda.device_count()):
        values = torch.cuda.get_device_properties(number)
        devices[f"cuda:{number}"] = f"{values.name}, {values.total_memory / 2**30:.0f} GiB"
    if torch.backends.mps.is_available():
        devices["mps"] = "available"
    return devices


def _extras() -> dict[str, dict[str, Any]]:
    """For each extra, its installed packages with their versions, and those that are missing."""
    extras: dict[str, dict[str, Any]] = {}
    for line in importlib.metadata.requires("textguide") or []:
        requirement, _, marker = line.partition(";")
        extra = re.search(r"""extra\s*==\s*["']([\w-]+)["']""", marker)
        name = re.match(r"[\w.-]+", requirement)
        if extra is None or name is None or extra[1] == "dev":
            continue
        entry = extras.setdefault(extra[1], {"packages": {}, "missing": []})
        version = _version(name[0])
        if version is None:
            entry["missing"].append(requirement.strip())
        else:
            entry["packages"][name[0]] = version
    return extras


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _hub() -> Path:
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub")


def _size(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder} (empty)"
    total = sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    return f"{folder} ({total / 1e9:.1f} GB)"

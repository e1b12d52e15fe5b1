"""Pictures with captions from files: COCO's annotations, or a folder of images with a file of captions."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAMES = ("captions.json", "captions.jsonl", "captions.tsv", "captions.csv", "captions.txt")


@dataclass(frozen=True)
class Picture:
    """One picture and what people said of it.

    Args:
        name: what identifies it.
        path: its file.
        references: captions by people.
    """

    name: str
    path: Path
    references: tuple[str, ...]


def read(source: str | Path) -> list[Picture]:
    """The pictures of ``source``, in the order of its captions.

    Args:
        source: COCO annotations (``images`` and ``annotations``); a list of ``{"file_name" or "image_name",
            "captions"}`` (as Karpathy's splits have them) in a ``.json`` or ``.jsonl`` file; lines of
            ``file<tab>caption`` (``.tsv``, ``.txt``) or ``file,caption`` (``.csv``), where a file may have several
            lines; or a folder with one of these under the name ``captions.*``. Images are looked for beside the
            captions, and in folders there.

    Raises:
        ValueError: there is no such file, or it cannot be understood.
    """
    given = Path(source)
    file = given
    if given.is_dir():
        found = [given / name for name in NAMES if (given / name).is_file()]
        if not found:
            raise ValueError(f"--data {given} has no {', '.join(NAMES)}; put the captions there")
        file = found[0]
    if not file.is_file():
        raise ValueError(
            f"--data {given} does not exist; name a folder with images and captions, or a file of captions"
        )
    try:
        rows = _rows(file)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"--data {file} cannot be read as captions ({' '.join(str(error).split())[:200]})") from error
    rows = {name: texts for name, texts in rows.items() if texts}
    if not rows:
        raise ValueError(f"--data {file} holds no captions")
    return [Picture(name, _place(file.parent, name), tuple(texts)) for name, texts in rows.items()]


def _rows(file: Path) -> dict[str, list[str]]:
    text = file.read_text(encoding="utf-8-sig")
    rows: dict[str, list[str]] = {}
    if file.suffix == ".jsonl":
        return _entries([json.loads(line) for line in text.splitlines() if line.strip()])
    if file.suffix == ".json":
        values = json.loads(text)
        if isinstance(values, Mapping) and "annotations" in values:
            names = {image["id"]: str(image["file_name"]) for image in values["images"]}
            rows = {name: [] for name in names.values()}
            for annotation in values["annotations"]:
                rows[names[annotation["image_id"]]].append(str(annotation["caption"]))
            return rows
        if isinstance(values, Mapping):
            values = values.get("images", [{"file_name": k, "captions": v} for k, v in values.items()])
        return _entries(values)
    separator = "," if file.suffix == ".csv" else "\t"
    for number, line in enumerate(csv.reader(text.splitlines(), delimiter=separator), start=1):
        if not line:
            continue
        if len(line) != 2:
            raise ValueError(f"line {number} must hold a file and a caption")
        rows.setdefault(line[0], []).append(line[1])
    return rows


def _entries(values: list[Any]) -> dict[str, list[str]]:
    rows: dict[str, list[str]] = {}
    for entry in values:
        name = next(entry[key] for key in ("file_name", "image_name", "filename", "image") if key in entry)
        captions = entry.get("captions", entry.get("caption", entry.get("sentences")))
        captions = [captions] if isinstance(captions, str) else captions
        rows.setdefault(str(name), []).extend(str(c["raw"] if isinstance(c, Mapping) else c) for c in captions)
    return rows


def _place(folder: Path, name: str) -> Path:
    beside = folder / name
    if beside.is_file():
        return beside
    for inner in ("images", "val2014", "train2014", "val2017", "train2017"):
        if (folder / inner / name).is_file():
            return folder / inner / name
    return beside

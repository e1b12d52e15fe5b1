"""Drawn scenes with captions: shapes, colours, sizes, relations, and what people would say about them::

    python scripts/train/scenes.py --split test --count 500 --output scenes

writes PNG files and ``captions.json`` in the form of COCO's annotations. Captions come at five levels of detail, most
of them short and vague, as people write them; some leave an object out, a few are wrong or nonsense. A scene belongs to
one split, chosen by the hash of its content, so no scene of one split can turn up in another.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

SIDE = 64
CELL = SIDE / 2
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
COLOURS = {
    "red": (214, 39, 40), "blue": (31, 80, 200), "green": (34, 150, 60), "yellow": (245, 215, 30),
    "purple": (130, 50, 170), "orange": (250, 135, 20), "black": (20, 20, 20), "white": (250, 250, 250),
}  # fmt: skip
SIZES = {"small": 0.22, "": 0.33, "large": 0.44}
GROUNDS = {"gray": (150, 150, 150), "pink": (245, 180, 200), "brown": (120, 85, 60), "light": (205, 225, 235)}
COLUMNS, ROWS = ("left", "right"), ("top", "bottom")
LEVELS = (0.30, 0.32, 0.20, 0.11, 0.07)
"""How often people mention: that there is something; shapes; colours; sizes and relations; places and background."""
ERROR = 0.03
NONSENSE = 0.02
"""Share of captions that are nonsense: what someone said of another picture, with its words in disorder."""
SPLITS = {"test": (0, 10), "validation": (10, 12), "dual": (12, 50), "train": (50, 100)}


@dataclass(frozen=True, order=True)
class Thing:
    """One drawn object; ``column`` and ``row`` 0 or 1."""

    column: int
    row: int
    shape: str
    colour: str
    size: str


@dataclass(frozen=True)
class Scene:
    """Up to three things, in the order of their places, on a background."""

    things: tuple[Thing, ...]
    ground: str

    @property
    def key(self) -> str:
        """The content as text."""
        things = ";".join(f"{t.column}{t.row}:{t.size}:{t.colour}:{t.shape}" for t in self.things)
        return f"{self.ground}|{things}"

    @property
    def split(self) -> str:
        """The one split that this scene belongs to."""
        percent = int(hashlib.sha256(self.key.encode()).hexdigest()[:8], 16) % 100
        return next(name for name, (low, high) in SPLITS.items() if low <= percent < high)


def scenes(split: str, seed: int) -> Iterator[tuple[Scene, random.Random]]:
    """Endless scenes of one split, each with the generator that its picture and captions are to use."""
    if split not in SPLITS:
        raise ValueError(f"split={split!r} must be one of {', '.join(SPLITS)}")
    chance = random.Random(f"{split} {seed}")
    while True:
        scene = _draw_scene(chance)
        if scene.split == split:
            yield scene, chance


def _draw_scene(chance: random.Random) -> Scene:
    count = chance.choices((1, 2, 3), (0.35, 0.45, 0.20))[0]
    cells = chance.sample([(column, row) for column in range(2) for row in range(2)], count)
    things = [
        Thing(*cell, chance.choice(SHAPES), chance.choice(list(COLOURS)), chance.choice(list(SIZES))) for cell in cells
    ]
    return Scene(tuple(sorted(things)), chance.choice(list(GROUNDS)))


# -- pictures ----------------------------------------------------------------------------------------------------------


def picture(scene: Scene, chance: random.Random) -> Image.Image:
    """The scene with 64×64 pixels, RGB; places, angles and colours are a little off, as by hand."""
    scale = 3
    image = Image.new("RGB", (SIDE * scale, SIDE * scale), _near(GROUNDS[scene.ground], chance))
    draw = ImageDraw.Draw(image)
    for thing in scene.things:
        radius = SIZES[thing.size] * CELL * scale * chance.uniform(0.95, 1.05)
        x, y = ((place + 0.5 + chance.uniform(-0.06, 0.06)) * CELL * scale for place in (thing.column, thing.row))
        colour = _near(COLOURS[thing.colour], chance)
        if thing.shape == "circle":
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
        else:
            turn = chance.uniform(-0.15, 0.15)
            points = [
                (
                    x + radius * (a * math.cos(turn) - b * math.sin(turn)),
                    y + radius * (a * math.sin(turn) + b * math.cos(turn)),
                )
                for a, b in OUTLINES[thing.shape]
            ]
            draw.polygon(points, fill=colour)
    return image.resize((SIDE, SIDE), Image.Resampling.BOX)


def _near(colour: tuple[int, int, int], chance: random.Random) -> tuple[int, ...]:
    return tuple(min(255, max(0, value + chance.randint(-8, 8))) for value in colour)


def _outline(corners: int, inner: float | None = None) -> list[tuple[float, float]]:
    """Corners on the unit circle from the top on; with ``inner`` a star."""
    count = corners if inner is None else 2 * corners
    radius = [1.0 if inner is None or i % 2 == 0 else inner for i in range(count)]
    return [
        (r * math.sin(2 * math.pi * i / count), -r * math.cos(2 * math.pi * i / count)) for i, r in enumerate(radius)
    ]


_ARM = 0.33
OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": _outline(3),
    "star": _outline(5, 0.42),
    "diamond": [(0, -1.1), (0.7, 0), (0, 1.1), (-0.7, 0)],
    "cross": [
        (-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM),
        (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM),
    ],
}  # fmt: skip


# -- captions ----------------------------------------------------------------------------------------------------------


def caption(scene: Scene, chance: random.Random, level: int | None = None) -> str:
    """What one person says about the scene.

    Args:
        level: 0 there is something, 1 shapes, 2 with colours, 3 with sizes and relations, 4 with places and background;
            None: drawn by :data:`LEVELS`.
    """
    if level is None:
        level = chance.choices(range(len(LEVELS)), LEVELS)[0]
    text = _vague(scene, chance) if level == 0 else _named(scene, chance, level)
    start = chance.random()
    if start < 0.08:
        return f"a picture of {text}"
    if start < 0.12:
        return f"there is {text}" if len(scene.things) == 1 else f"there are {text}"
    return text


def said(scene: Scene, chance: random.Random) -> str:
    """A caption at any level, or nonsense."""
    if chance.random() < NONSENSE:
        words = caption(_draw_scene(chance), chance).split()
        chance.shuffle(words)
        return " ".join(words)
    return caption(scene, chance)


def _vague(scene: Scene, chance: random.Random) -> str:
    count = len(scene.things)
    if count == 1:
        return chance.choices(("a shape", "a simple shape", "a shape on a background", "something"), (6, 1, 1, 1))[0]
    many = ("two shapes" if count == 2 else "three shapes", "some shapes", "shapes", "some things", "a few shapes")
    return chance.choices(many, (5, 4, 2, 1, 1))[0]


def _named(scene: Scene, chance: random.Random, level: int) -> str:
    things = list(scene.things)
    chance.shuffle(things)
    if len(things) > 1 and chance.random() < (0.25 if level < 3 else 0.05):
        things.pop()  # people leave things out
    names = [_thing(thing, chance, level) for thing in things]
    if level >= 3 and len(things) > 1:
        text = f"{names[0]} {_relation(things[0], things[1])} {names[1]}"
        if len(things) > 2:
            text += f" and {names[2]}"
    elif level == 4:
        text = f"{names[0]} {_place(things[0])}"
    else:
        text = " and ".join(names)
    if level == 4:
        text += f" on a {_or_error(scene.ground, tuple(GROUNDS), chance)} background"
    return text


def _thing(thing: Thing, chance: random.Random, level: int) -> str:
    words = [_or_error(thing.shape, SHAPES, chance)]
    if level >= 3 or (level == 2 and chance.random() < 0.85):
        words.insert(0, _or_error(thing.colour, tuple(COLOURS), chance))
    if level >= 3 and thing.size:
        words.insert(0, thing.size if thing.size == "small" else chance.choice(("large", "big")))
    return " ".join(["an" if words[0] == "orange" else "a", *words])


def _relation(one: Thing, other: Thing) -> str:
    across, down = one.column - other.column, one.row - other.row
    if abs(across) >= abs(down):
        return "to the left of" if across < 0 else "to the right of"
    return "above" if down < 0 else "below"


def _place(thing: Thing) -> str:
    return f"in the {ROWS[thing.row]} {COLUMNS[thing.column]} corner"


def _or_error(word: str, words: tuple[str, ...], chance: random.Random) -> str:
    return chance.choice(words) if chance.random() < ERROR else word


def vocabulary() -> list[str]:
    """Every word that a caption can hold."""
    chance = random.Random(0)
    found = {
        word
        for split in SPLITS
        for (scene, _), _ in zip(scenes(split, 1), range(600), strict=False)
        for level in range(len(LEVELS))
        for word in caption(scene, chance, level).split()
    }
    return sorted(found)


# -- files -------------------------------------------------------------------------------------------------------------


def write(split: str, count: int, seed: int, folder: Path, references: int = 5) -> None:
    """``count`` different scenes as PNG files, with ``captions.json`` (COCO's annotations)."""
    folder.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    seen: set[str] = set()
    for scene, chance in scenes(split, seed):
        if len(images) == count:
            break
        if scene.key in seen:
            continue
        seen.add(scene.key)
        number = len(images)
        name = f"{split}-{number:05d}.png"
        picture(scene, chance).save(folder / name, optimize=True)
        images.append({"id": number, "file_name": name, "width": SIDE, "height": SIDE, "scene": scene.key})
        for _ in range(references):
            text = said(scene, chance)
            annotations.append({"id": len(annotations), "image_id": number, "caption": text})
    values = {"info": {"split": split, "seed": seed}, "images": images, "annotations": annotations}
    (folder / "captions.json").write_text(json.dumps(values, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=list(SPLITS), default="test")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    write(arguments.split, arguments.count, arguments.seed, arguments.output)


if __name__ == "__main__":
    main()

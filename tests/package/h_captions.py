"""Captions of a folder of pictures, in a CSV file."""

import csv
from pathlib import Path

from PIL import Image, ImageDraw

import textguide
from textguide import CFG, captioning

for colour in ("red", "blue", "green"):
    picture = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(picture).ellipse((14, 14, 50, 50), fill=colour)
    picture.save(f"{colour}.png")
paths = sorted(Path().glob("*.png"))
model, processor = captioning.load("drawn-scenes", device="cpu")
pictures = [Image.open(path) for path in paths]
out = textguide.caption(model, processor, pictures, CFG(1.5), max_new_tokens=16)
with open("captions.csv", "w", newline="") as file:
    csv.writer(file).writerows([("file", "caption"), *zip((path.name for path in paths), out.texts)])
with open("captions.csv", newline="") as file:
    rows = list(csv.DictReader(file))
assert [row["file"] for row in rows] == ["blue.png", "green.png", "red.png"]
assert all(row["caption"] for row in rows)
print(rows, out.effect)

"""The hidden Markov model of the bundled model, ``textguide/smc/lookahead/weights/smollm2.safetensors``.

    python scripts/train/lookahead.py --data FOLDER [--tokens 200000] [--states 128]

Openings: passages of LAMBADA and questions of GSM8K from the data folder, and beginnings of forms that constraints
have: dates, numbers, JSON, SQL, lists.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
OUT = ROOT / "textguide/smc/lookahead/weights/smollm2.safetensors"
FORMS = (
    "The date is {y}-", "{y}-", "On {y}-0{d}-", "It was {y}", "{d}{d}{d}-", "Call {d}{d}{d}-{d}{d}", '{{"name": "',
    '{{"id": {d}, "', "[{d}, {d}", "SELECT ", "SELECT name FROM ", "Price: ${d}", "{d}{d}:{d}{d}", "user{d}@", "#{d}",
    "http://www.", "v{d}.{d}.", "My favourite number is ", "The answer is {d}", "Yes", "No", "A) ", "1. ", "- ",
    "CC(=O)",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tokens", default="200000")
    parser.add_argument("--states", default="128")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    rng = random.Random(0)
    lines = []
    for name, field in (("lambada/lambada_test.jsonl", "text"), ("gsm8k/test.jsonl", "question")):
        rows = (arguments.data / name).read_text(encoding="utf-8").splitlines()
        lines += [" ".join(json.loads(row)[field].split()) for row in rng.sample(rows, 600)]
    lines += [
        rng.choice(FORMS).format(y=rng.randint(1900, 2029), d=rng.randint(0, 9)).replace("\n", " ") for _ in range(1200)
    ]
    with tempfile.TemporaryDirectory() as folder:
        openings = Path(folder) / "openings.txt"
        openings.write_text("\n".join(lines), encoding="utf-8")
        arguments.out.parent.mkdir(exist_ok=True)
        command = ["lookahead", "train", "--model", "smollm2", "--openings", str(openings), "--out", str(arguments.out)]
        command += ["--tokens", arguments.tokens, "--states", arguments.states, "--overwrite"]
        subprocess.run([sys.executable, "-m", "textguide", *command], check=True)


if __name__ == "__main__":
    main()

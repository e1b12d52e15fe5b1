"""A sweep over γ with a model in one's own folder, outside of any repository, run a second time to resume it."""

from pathlib import Path

import textguide
from textguide import cli
from textguide.eval import read_run

model, tokenizer = textguide.load("smollm2-small", device="cpu")
model.save_pretrained("model")
tokenizer.save_pretrained("model")
command = ["eval", "--model", "model", "--tasks", "lambada_mini", "--limit", "6", "--scales", "1,1.5"]
assert cli.main([*command, "--output", "run"]) == 0
run = read_run("run")
assert len(run.labels) == 2
assert {"report.md", "results.json"} <= {path.name for path in Path("run").iterdir()}
assert list(Path("run").rglob("*.png")) or list(Path("run").rglob("*.svg"))
assert cli.main([*command, "--output", "run"]) == 0

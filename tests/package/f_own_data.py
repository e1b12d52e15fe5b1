"""The best γ on one's own data: a task of lm-eval that reads a JSONL file."""

import json
from pathlib import Path

from textguide import cli
from textguide.eval import read_run

WORDS = (("The capital of France is", "Paris"), ("The opposite of hot is", "cold"), ("Two and two are", "four")) * 4
Path("mine.jsonl").write_text("".join(json.dumps({"context": c, "answer": a}) + "\n" for c, a in WORDS))
Path("mine.yaml").write_text(
    """task: mine
dataset_path: json
dataset_kwargs: {data_files: {test: mine.jsonl}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{context}}"
doc_to_target: " {{answer}}"
metric_list: [{metric: acc}, {metric: perplexity}]
"""
)
command = ["eval", "--model", "smollm2-small", "--tasks", "mine.yaml", "--scales", "1,1.5,2", "--output", "run"]
assert cli.main(command) == 0
run = read_run("run")
assert len(run.labels) == 3
assert Path("run/report.md").is_file()

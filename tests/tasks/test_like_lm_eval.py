"""A local task asks and scores as lm-eval's own task of the same name does."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval.api.metrics import exact_match_fn
from lm_eval.config.task import TaskConfig
from lm_eval.utils import apply_template

from textguide import tasks
from textguide.tasks.catalogue import ALWAYS_FOLDER, LOCAL_FOLDER
from textguide.tasks.manager import load_config

OWN = Path(lm_eval.__file__).parent / "tasks"
FILES = {
    "arc_challenge": "arc/arc_challenge.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "boolq": "super_glue/boolq/default.yaml",
    "gpqa_diamond_cot_zeroshot": "gpqa/cot_zeroshot/_gpqa_cot_zeroshot_yaml",
    "gpqa_diamond_generative_n_shot": "gpqa/generative/_gpqa_generative_n_shot_yaml",
    "gpqa_diamond_n_shot": "gpqa/n_shot/_gpqa_n_shot_yaml",
    "gpqa_diamond_zeroshot": "gpqa/zeroshot/_gpqa_zeroshot_yaml",
    "gsm8k_cot": "gsm8k/gsm8k-cot.yaml",
    "gsm8k_cot_self_consistency": "gsm8k/gsm8k-cot-self-consistency.yaml",
    "lambada_openai": "lambada/lambada_openai.yaml",
    "piqa": "piqa/piqa.yaml",
    "triviaqa": "triviaqa/default.yaml",
    "winogrande": "winogrande/default.yaml",
}
SETTINGS = (
    "output_type",
    "generation_kwargs",
    "filter_list",
    "repeats",
    "description",
    "target_delimiter",
    "fewshot_delimiter",
    "process_results",
    "gen_prefix",
)


def theirs(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    path = OWN / FILES[name]
    monkeypatch.syspath_prepend(str(path.parent))  # their `!function` names are relative to the file
    for module in ("utils", "preprocess_winogrande"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    return load_config(path)


def ours(name: str) -> dict[str, Any]:
    folder = ALWAYS_FOLDER if (ALWAYS_FOLDER / f"{name}.yaml").exists() else LOCAL_FOLDER
    return load_config(folder / f"{name}.yaml")


def test_every_task_is_compared() -> None:
    # HumanEval scores in its own way, and the mini set is LAMBADA's.
    assert {
        *FILES,
        "continuations",
        "continuations_consistent",
        "continuations_positive",
        "humaneval",
        "lambada_mini",
        "sudoku4",
        "sudoku6",
    } == set(tasks.names())


@pytest.mark.parametrize("name", sorted(FILES))
def test_settings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own, there = ours(name), theirs(name, monkeypatch)
    defaults = TaskConfig(generation_kwargs={"until": []})
    mine, original = ({key: config.get(key, defaults[key]) for key in SETTINGS} for config in (own, there))
    assert mine == original
    assert [entry["metric"] for entry in own["metric_list"]] == [entry["metric"] for entry in there["metric_list"]]
    for mine, original in zip(own["metric_list"], there["metric_list"], strict=True):
        assert {
            **original,
            "aggregation": mine["aggregation"],
            "higher_is_better": mine["higher_is_better"],
        } == mine
    assert own["metadata"]["version"] == there["metadata"]["version"] or "version" not in there["metadata"]


def hub_row(name: str, row: dict[str, Any]) -> dict[str, Any]:
    """The row as the hub's data set holds it."""
    if name.startswith("arc"):
        return {"question": row["query"].removeprefix("Question: ")}
    if name == "piqa":
        return {"goal": row["query"].removeprefix("Question: ")}
    if name == "boolq":
        passage, _, question = row["query"].rpartition("\nQuestion: ")
        return {"passage": passage, "question": question.removesuffix("?")}
    if name.startswith("gpqa"):
        return {**row, "Question": row["question"]}
    return row


@pytest.mark.parametrize("name", sorted(set(FILES) - {"winogrande"}))
def test_prompts(name: str, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    specs, manager = tasks.resolve([name], data)
    task = manager.load(specs)["tasks"][name]
    template = theirs(name, monkeypatch)["doc_to_text"]
    rows = [dict(row) for row in task.eval_docs.select(range(20))]
    same = [task.doc_to_text(row) == apply_template(template, hub_row(name, row)) for row in rows]
    assert all(same), f"{same.count(False)} prompts differ"  # counts only: some of these texts must not be shown


def test_winogrande(monkeypatch: pytest.MonkeyPatch, data: str) -> None:
    there = theirs("winogrande", monkeypatch)
    doc = {"sentence": "Ann met Eve so _ left early.", "option1": "Ann", "option2": "Eve", "answer": "2"}
    row = {
        "context_options": ["Ann met Eve so Ann", "Ann met Eve so Eve"],
        "continuation": "left early.",
        "gold": 1,
    }
    specs, manager = tasks.resolve(["winogrande"], data)
    task = manager.load(specs)["tasks"]["winogrande"]
    assert task.doc_to_text(row) == there["doc_to_text"](doc)
    assert task.doc_to_target(row) == there["doc_to_target"](doc)
    assert task.doc_to_choice(row) == there["doc_to_choice"](doc)


def test_gsm8k_shows_lm_evals_worked_examples(data: str) -> None:
    specs, manager = tasks.resolve(["gsm8k_cot"], data)
    task = manager.load(specs)["tasks"]["gsm8k_cot"]
    context = task.fewshot_context(dict(task.eval_docs[0]), 8)
    assert context.count("Q: ") == 9
    assert context.count("The answer is ") == 8
    assert context.endswith("\nA:")


def test_gsm8k_ignores_thousands_and_dollars() -> None:
    (metric,) = ours("gsm8k_cot")["metric_list"]
    options = {key: value for key, value in metric.items() if key.startswith(("ignore", "regexes"))}
    assert exact_match_fn(predictions=["$1,000."], references=["1000"], **options) == {"exact_match": 1.0}

"""GPQA's questions reach the model and nothing else.

No assertion here compares texts or calls anything on them: pytest would show both. A failure shows counts and
file names only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from textguide import tasks
from textguide.tasks import gpqa, loaders

from .oracle import Oracle, run, scores


class Secrets:
    """Slices of texts that must not turn up, with a repr that does not show them."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._slices = set()
        for text in texts:
            if len(text) >= 40:
                middle = len(text) // 2 - 20
                self._slices |= {text[:40], text[middle : middle + 40], text[-40:]}
        # The spellings in which JSON writes the same text.
        escaped = {json.dumps(part, ensure_ascii=ascii)[1:-1] for part in self._slices for ascii in (True, False)}
        self._spellings = {text.encode() for text in self._slices | escaped}

    def __repr__(self) -> str:
        return f"<{len(self._slices)} secrets>"

    def count_in(self, content: bytes) -> int:
        """How many spellings of the secrets are in the content."""
        return sum(spelling in content for spelling in self._spellings)


@pytest.fixture(scope="module")
def secrets(data: str) -> Secrets:
    rows = gpqa.diamond(data=data)["test"]
    return Secrets([*rows["question"], *(choice for choices in rows["choices"] for choice in choices)])


def files_with(secrets: Secrets, folder: Path) -> list[str]:
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and secrets.count_in(path.read_bytes())
    ]


def test_the_scan_finds_what_it_looks_for(tmp_path: Path) -> None:
    text = "A made-up question, with “quotes” and\na line break, which is long enough to be cut into slices."
    secrets = Secrets([text])
    (tmp_path / "plain.txt").write_text(f"before {text} after", encoding="utf-8")
    (tmp_path / "escaped.json").write_text(json.dumps({"doc": text}))
    (tmp_path / "other.txt").write_text("nothing of the kind")
    assert sorted(files_with(secrets, tmp_path)) == ["escaped.json", "plain.txt"]
    assert "made-up" not in repr(secrets)


# Runs apart, because the libraries read the places of their caches when they are imported.
SCRIPT = """
import sys
import lm_eval
from lm_eval.loggers import EvaluationTracker
from textguide import tasks
from tests.tasks.oracle import Oracle

names = list(tasks.PROTECTED_TASKS)
specs, manager = tasks.resolve(names)
# The worst case: the model quotes the whole question.
lm = Oracle(True, lambda doc, turn: f"{doc['question']} The answer is {doc['question']}. {doc['answer']}")
tracker = EvaluationTracker(output_path=sys.argv[1])
options = {"bootstrap_iters": 0, "log_samples": True, "evaluation_tracker": tracker}
results = lm_eval.simple_evaluate(model=lm, tasks=specs, task_manager=manager, **options)
samples = results.pop("samples")
tracker.save_results_aggregated(results=results, samples=samples)
for name in names:
    tracker.save_results_samples(task_name=name, samples=samples[name])
print("saved", sum(len(rows) for rows in samples.values()), "seen", len(lm.prompts))
"""


def test_a_run_leaves_no_question_on_the_disk(data: str, secrets: Secrets, tmp_path: Path) -> None:
    folders = ("HF_HOME", "XDG_CACHE_HOME", "TMPDIR", "HOME", "LM_HARNESS_CACHE_PATH")
    environment = {**os.environ, **{name: str(tmp_path / name.lower()) for name in folders}}
    for name in folders:
        Path(environment[name]).mkdir()
    environment |= {"TEXTGUIDE_DATA": str(Path(data).resolve()), "HF_HUB_OFFLINE": "1"}
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "results")],
        capture_output=True,
        cwd=root,
        env=environment,
        timeout=300,
    )
    printed = result.stdout + result.stderr
    found = secrets.count_in(printed)
    assert found == 0, "the run printed a question"
    assert result.returncode == 0, printed.decode()[-2000:]
    # 198 documents in each of the four tasks: four choices in two of them, two filters in the other two.
    assert b"saved 1188 seen 1980" in result.stdout
    logs = list((tmp_path / "results").rglob("samples_*.jsonl"))
    assert len(logs) == len(tasks.PROTECTED_TASKS)
    assert files_with(secrets, tmp_path) == []


@pytest.mark.parametrize("name", tasks.PROTECTED_TASKS)
def test_the_model_sees_the_question_and_the_samples_do_not(name: str, data: str, secrets: Secrets) -> None:
    lm = Oracle(True)
    results = run(name, lm, data, log_samples=True)
    seen = secrets.count_in(json.dumps(lm.prompts).encode())
    assert seen > 0
    logged = json.dumps(results["samples"], default=str, ensure_ascii=False).encode()
    found = secrets.count_in(logged)
    assert found == 0, "a question is in the samples"
    assert set(scores(results, name).values()) == {1.0}
    columns = sorted(results["samples"][name][0]["doc"])
    assert columns == ["answer", "id"]


def test_a_task_can_be_run_twice(data: str) -> None:
    import lm_eval

    specs, manager = tasks.resolve(["gpqa_diamond_zeroshot"], data)
    loaded = manager.load(specs)
    for right in (True, False, True):
        results = lm_eval.evaluate(lm=Oracle(right), task_dict=loaded, limit=3, bootstrap_iters=0)
        assert scores(results, "gpqa_diamond_zeroshot") == dict.fromkeys(["acc,none", "acc_norm,none"], float(right))


def test_caching_requests_is_refused(data: str) -> None:
    with pytest.raises(ValueError, match="cache_requests=True would write"):
        run("gpqa_diamond_zeroshot", Oracle(True), data, cache_requests=True)


@pytest.mark.parametrize("option", [{"write_out": True}, {"cache_requests": True}, {"use_cache": "answers"}])
def test_options_that_would_show_questions_are_refused(option: dict[str, Any]) -> None:
    tasks.check_run_options(["arc_easy"], **option)
    with pytest.raises(ValueError, match=rf"{next(iter(option))}=.*gpqa_diamond_zeroshot.*leave"):
        tasks.check_run_options(["arc_easy", "gpqa_diamond_zeroshot"], **option)


def test_the_order_of_the_choices_is_fixed_and_mixed(data: str) -> None:
    gpqa._documents.cache_clear()
    first = gpqa.diamond(data=data)["test"]["answer"]
    gpqa._documents.cache_clear()
    second = gpqa.diamond(data=data)["test"]["answer"]
    assert first == second
    assert len(first) == 198
    counts = {letter: list(first).count(f"({letter})") for letter in "ABCD"}
    assert min(counts.values()) > 30, counts


def test_the_hub_is_streamed_when_there_is_no_folder(no_data: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(*arguments: Any, **options: Any) -> list[dict[str, str]]:
        asked.append((arguments, options))
        answers = {f"Incorrect Answer {number}": f"wrong {number}" for number in (1, 2, 3)}
        return [{"Record ID": "rec", "Question": "made up", "Correct Answer": " right ", **answers}]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    (row,) = gpqa.diamond()["test"]
    assert row["choices"]["ABCD".index(row["answer"][1])] == "right"
    assert asked == [(("Idavidrein/gpqa", "gpqa_diamond"), {"split": "train", "streaming": True})]


def test_a_broken_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "gpqa").mkdir()
    (tmp_path / "gpqa" / "gpqa_diamond_protected.zip").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="not the encrypted archive") as caught:
        gpqa.diamond(data=str(tmp_path))
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("name", ["gpqa_main_zeroshot", "leaderboard_gpqa", "leaderboard", "gpqa_diamond_cot_n_shot"])
def test_gpqa_tasks_that_are_not_ours_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="would store GPQA's questions"):
        tasks.resolve([name])


def test_the_readers_keep_rows_in_memory(data: str) -> None:
    assert gpqa.diamond(data=data)["test"].cache_files == []
    assert loaders.lambada_mini()["test"].cache_files == []

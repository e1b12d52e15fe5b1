"""Names and folders: what is found, and what is said where nothing is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from textguide import tasks
from textguide.tasks import loaders


@pytest.mark.parametrize(("wrong", "near"), [("lambada_minni", "lambada_mini"), ("arc-easy", "arc_easy")])
def test_an_unknown_name_gets_its_neighbours(wrong: str, near: str) -> None:
    with pytest.raises(ValueError, match=rf"tasks='{wrong}' is unknown.*nearest names are [^(]*{near}"):
        tasks.resolve([wrong])


@pytest.mark.parametrize("nothing", [[], "", " , "])
def test_no_task_is_an_error(nothing: list[str] | str) -> None:
    with pytest.raises(ValueError, match="names no task"):
        tasks.resolve(nothing)


def test_names_come_as_a_list_or_with_commas(no_data: None) -> None:
    assert tasks.resolve("lambada_mini, humaneval,lambada_mini").tasks == ["lambada_mini", "humaneval"]
    assert tasks.resolve(("humaneval",)).tasks == ["humaneval"]


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = str(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"data='.*nowhere' is not a folder.*--data FOLDER.*TEXTGUIDE_DATA"):
        tasks.resolve(["arc_easy"], missing)
    monkeypatch.setenv("TEXTGUIDE_DATA", missing)
    with pytest.raises(ValueError, match=r"TEXTGUIDE_DATA='.*nowhere' is not a folder"):
        tasks.resolve(["arc_easy"])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    specs, manager = tasks.resolve(["gsm8k_cot"], tmp_path)
    with pytest.raises(ValueError, match=r"'gsm8k/test.jsonl' is missing.*--data FOLDER.*TEXTGUIDE_DATA"):
        manager.load(specs)


def test_the_variable_names_the_folder_and_the_argument_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, text in (("a", "one two"), ("b", "one three")):
        (tmp_path / folder / "lambada").mkdir(parents=True)
        (tmp_path / folder / "lambada" / "lambada_test.jsonl").write_text(json.dumps({"text": text}))
    monkeypatch.setenv("TEXTGUIDE_DATA", str(tmp_path / "a"))
    for data, text in ((None, "one two"), (tmp_path / "b", "one three")):
        specs, manager = tasks.resolve(["lambada_openai"], data)
        assert manager.load(specs)["tasks"]["lambada_openai"].eval_docs["text"][0] == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"lambada/lambada_test.jsonl holds no rows"),
        ("\n\n", r"lambada/lambada_test.jsonl holds no rows"),
        (
            '{"text": "a b"}\n{"txt": "a b"}\n',
            r"lambada_test.jsonl, line 2: expected a JSON object with text",
        ),
        ("not json", r"lambada_test.jsonl, line 1: expected a JSON object"),
        ("[1]", r"lambada_test.jsonl, line 1: expected a JSON object"),
    ],
)
def test_a_broken_file_is_named(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "lambada").mkdir()
    (tmp_path / "lambada" / "lambada_test.jsonl").write_text(content)
    with pytest.raises(ValueError, match=message):
        loaders.lambada_openai(data=str(tmp_path))


def test_without_a_folder_the_hub_is_asked_and_its_absence_explained(
    no_data: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    specs, manager = tasks.resolve(["arc_easy"])
    assert specs == ["arc_easy"]
    assert "lm_eval" in str(manager.task_index["arc_easy"].yaml_path)  # lm-eval's own
    with pytest.raises(ValueError, match=r"tasks='arc_easy'.*no route.*--data FOLDER.*TEXTGUIDE_DATA"):
        manager.load(specs)
    specs, manager = tasks.resolve(["humaneval"])
    with pytest.raises(ValueError, match=r"tasks='humaneval'.*no route"):
        manager.load(specs)


def test_names_of_lm_eval_pass_through(tmp_path: Path) -> None:
    specs, manager = tasks.resolve(["hellaswag", "arc_easy"], tmp_path)
    assert specs == ["hellaswag", "arc_easy"]
    assert manager.task_index["arc_easy"].yaml_path.parent.name == "local"
    assert "lm_eval" in str(manager.task_index["hellaswag"].yaml_path)


@pytest.mark.parametrize("repeats", [0, -1, 2.5, True])
def test_repeats_must_be_a_count(repeats: int, no_data: None) -> None:
    with pytest.raises(ValueError, match=rf"repeats={repeats!r} must be a whole number"):
        tasks.resolve(["humaneval"], repeats=repeats)


def test_repeats_without_a_task_that_takes_them(no_data: None) -> None:
    with pytest.raises(
        ValueError, match="repeats=4 is for continuations_consistent, gsm8k_cot_self_consistency, humaneval"
    ):
        tasks.resolve(["lambada_mini"], repeats=4)


def test_repeats_reach_lm_evals_own_task_too(no_data: None) -> None:
    (spec,) = tasks.resolve(["gsm8k_cot_self_consistency"], repeats=5).tasks
    assert isinstance(spec, dict)
    assert spec["repeats"] == 5
    assert [entry["name"] for entry in spec["filter_list"]] == ["score-first", "maj@5"]
    assert spec["dataset_path"] == "openai/gsm8k"


def test_protection_goes_by_the_name() -> None:
    assert all(tasks.is_protected(name) for name in tasks.PROTECTED_TASKS)
    assert tasks.is_protected("leaderboard_gpqa_main")
    assert not tasks.is_protected("arc_easy")


def test_importing_the_room_loads_no_lm_eval() -> None:
    code = (
        "import sys, textguide.tasks as tasks; tasks.names(); "
        "sys.exit(bool({'lm_eval', 'datasets', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_filter_of_open_ended_self_consistency() -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.api.registry import get_filter

    from textguide.tasks import filters

    assert get_filter("most_consistent") is filters.MostConsistent
    answers = [["a b c", "a b d", "x"], ["only"]]
    assert filters.MostConsistent().apply(answers, []) == [["a b c"], ["only"]]


def test_repeats_keep_a_filter_that_is_no_vote(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    specs, _ = tasks.resolve(["continuations_consistent"], tmp_path, 3)
    assert isinstance(specs[0], dict)
    assert specs[0]["repeats"] == 3
    assert [found["name"] for found in specs[0]["filter_list"]] == ["score-first", "most-consistent"]

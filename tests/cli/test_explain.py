"""``textguide explain``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import textguide
from textguide import CFG, explain
from textguide.cli import main
from textguide.explanation.steps import RANKS

from .conftest import Run

NEW = ("--max-new-tokens", "4")


@pytest.fixture(scope="session")
def loaded(model_folder: Path) -> tuple[Any, Any]:
    return textguide.load(str(model_folder), device="cpu")


def test_terminal(run: Run, loaded: Any) -> None:
    outcome = run("explain", "hello", *NEW)
    assert outcome.code == 0
    assert outcome.err == ""
    expected = explain(*loaded, "hello", CFG(), max_new_tokens=4)
    assert "raised" in outcome.out
    assert "plain → guided" in outcome.out
    assert str(expected.effect)[:20] in outcome.out
    for step in expected.steps:
        assert f"{step.kl:.3f}" in outcome.out
    assert expected.text.strip() in outcome.out


def test_some_of_the_steps(run: Run, loaded: Any) -> None:
    expected = explain(*loaded, "hello", CFG(3.0), max_new_tokens=12)
    changed = [step.to_dict() for step in expected.steps if step.changed]
    assert 1 < len(changed) < 12
    common = ("explain", "hello", "--scale", "3", "--max-new-tokens", "12")
    record = json.loads(run(*common, "--json", "--changed-only").out)
    assert record["steps"] == json.loads(json.dumps(changed))
    record = json.loads(run(*common, "--json", "--steps", "3").out)
    assert [step["index"] for step in record["steps"]] == [0, 1, 2]
    assert record["text"] == expected.text
    outcome = run(*common, "--changed-only", "--steps", "1")
    assert "1 of 12 steps" in outcome.out
    assert expected.text.strip() in outcome.out
    outcome = run(*common, "--steps", "0")
    assert outcome.code == 2
    assert "--steps=0" in outcome.error


def test_rank(run: Run, loaded: Any) -> None:
    assert RANKS == ("probability", "ratio")
    for rank in RANKS:
        record = json.loads(run("explain", "hello", "--json", *NEW, "--rank", rank, "--min-prob", "0").out)
        expected = explain(*loaded, "hello", CFG(), max_new_tokens=4, rank=rank, min_prob=0.0)
        assert record == json.loads(json.dumps(expected.to_dict()))


def test_a_constraint(run: Run) -> None:
    outcome = run("explain", "hello", "--regex", "[0-9]{2,6}", "--sampler", "mask", *NEW)
    assert outcome.code == 0
    assert "forbidden" in outcome.out
    assert "constraint: KL" in outcome.out
    outcome = run("explain", "hello", "--particles", "2", *NEW)
    assert outcome.code == 2
    assert "--particles needs a constraint" in outcome.error


def test_guidance_that_changes_nothing_says_so(run: Run) -> None:
    outcome = run("explain", "hello", "--scale", "1", *NEW)
    assert outcome.code == 0
    assert "changes nothing" in " ".join(outcome.out.split())


def test_json(run: Run, loaded: Any) -> None:
    outcome = run("explain", "hello", "--json", *NEW, "--top", "2", "--min-prob", "0", "--scale", "3")
    record = json.loads(outcome.out)
    expected = explain(*loaded, "hello", CFG(3.0), max_new_tokens=4, top=2, min_prob=0.0)
    assert record == json.loads(json.dumps(expected.to_dict()))
    assert [len(step["raised"]) for step in record["steps"]] == [2] * 4


def test_html(run: Run, loaded: Any, tmp_path: Path) -> None:
    page = tmp_path / "new" / "page.html"
    outcome = run("explain", "hello", *NEW, "--html", str(page))
    assert outcome.code == 0
    assert f"wrote {page}" in outcome.out.replace("\n", "")
    assert page.read_text() == explain(*loaded, "hello", CFG(), max_new_tokens=4).to_html()
    assert [path.name for path in page.parent.iterdir()] == ["page.html"]
    outcome = run("explain", "hello", *NEW, "--html", str(page), "--json")
    json.loads(outcome.out)


def test_chat_file_and_standard_input(run: Run, loaded: Any, tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "hey"}]
    expected = explain(*loaded, chat, CFG(), max_new_tokens=4).text
    path = tmp_path / "prompt"
    path.write_text(json.dumps(chat))
    for outcome in (
        run("explain", "hey", "--chat", "--json", *NEW),
        run("explain", "--file", str(path), "--json", *NEW),
        run("explain", "--json", *NEW, stdin=json.dumps(chat)),
    ):
        assert json.loads(outcome.out)["text"] == expected
    system = [{"role": "system", "content": "be dull"}, *chat]
    outcome = run("explain", "hey", "--system", "be dull", "--json", *NEW)
    assert json.loads(outcome.out)["text"] == explain(*loaded, system, CFG(), max_new_tokens=4).text


def test_empty_prompt_is_a_prompt(run: Run, loaded: Any) -> None:
    outcome = run("explain", "", "--negative-prompt", "zzz", "--json", *NEW, stdin="not read")
    assert outcome.code == 0
    assert json.loads(outcome.out)["text"] == explain(*loaded, [1], CFG(1.5, "zzz"), max_new_tokens=4).text


def test_several_prompts(run: Run) -> None:
    outcome = run("explain", *NEW, stdin="one\ntwo\n")
    assert outcome.code == 2
    assert "got 2" in outcome.error


def test_an_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = pytest.importorskip("PIL.Image").new("RGB", (64, 64), "navy")
    image.save(tmp_path / "a.png")
    options = [
        "--image",
        str(tmp_path / "a.png"),
        "--scale",
        "2",
        *NEW,
        "--html",
        str(tmp_path / "page.html"),
        "--json",
    ]
    assert main(["explain", *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["steps"]) == 4
    assert "blank image" in (tmp_path / "page.html").read_text()
    assert main(["explain", "--image", str(tmp_path / "missing.png")]) == 2
    assert "missing.png is not a file" in capsys.readouterr().err
    assert main(["explain", "--image", str(tmp_path / "a.png"), "--system", "x"]) == 2
    assert "--system does not work with --image" in capsys.readouterr().err


def test_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = pytest.importorskip("PIL.Image").new("RGB", (64, 64), "navy")
    files = [str(tmp_path / name) for name in ("a.png", "b.png", "c.png")]
    for file in files:
        image.save(file)
    assert main(["caption", *files, "--batch-size", "2", "--scale", "2", *NEW, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["image"] for row in rows] == files
    expected = textguide.caption(*textguide.captioning.load("drawn-scenes"), files[0], CFG(2.0), max_new_tokens=4)
    assert {row["text"] for row in rows} == {expected.texts[0].strip()}
    assert {row["finish_reason"] for row in rows} == set(expected.finish_reasons)
    assert main(["caption", files[0], *NEW]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert main(["caption", str(tmp_path / "missing.png")]) == 2
    assert "missing.png is not a file" in capsys.readouterr().err

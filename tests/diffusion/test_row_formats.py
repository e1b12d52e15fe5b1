"""Models that fill only one kind of text refuse all others, and report whether their texts are what they should be."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from textguide import diffusion
from textguide.diffusion.picture import picture_values
from textguide.tasks import sudoku

PUZZLE = "0300124300000431"
GRID = "530070000600195000098000060800060003400803001700020006060000280000419005000080079"


@pytest.fixture(scope="module")
def four() -> tuple[Any, Any]:
    return diffusion.load("sudoku4", device="cpu")


@pytest.fixture(scope="module")
def nine() -> tuple[Any, Any]:
    return diffusion.load("sudoku9", device="cpu")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("123", r"prompts\[0\] has 3 cells and 16 masks.*a puzzle of 16 cells.*0 for an empty cell"),
        ("", r"prompts\[0\] has 0 cells"),
        ([3, 4, 5], r"prompts\[0\] has 3 cells"),
        ("abcd", r"does not know 'a b c d' in the text 'abcd'"),
        ("0300124300000435", r"does not know '5' in the text"),
        ("1111222233334444", r"prompts\[0\] is not a Sudoku: row 1 has 1 more than once"),
        ([PUZZLE, "1000010000000000"], r"prompts\[1\] is not a Sudoku: box 1 has 1"),
    ],
)
def test_what_is_not_a_puzzle_is_refused_in_every_way_in(four: Any, prompt: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        diffusion.generate(*four, prompt, max_new_tokens=16)
    with pytest.raises(ValueError, match=message):
        diffusion.stream(*four, prompt, max_new_tokens=16)
    if not isinstance(prompt, list) or isinstance(prompt[0], int):
        with pytest.raises(ValueError, match=message):
            diffusion.score(*four, prompt, "1234341221434321", draws=1)


def test_a_canvas_of_another_size_is_refused(four: Any) -> None:
    with pytest.raises(ValueError, match=r"16 cells and 8 masks.*use max_new_tokens=16"):
        diffusion.generate(*four, PUZZLE, max_new_tokens=8)
    with pytest.raises(ValueError, match=r"fills a grid of 16; use max_new_tokens=16"):
        diffusion.generate(*four, PUZZLE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5" + "[MASK]" * 7, r"texts\[0\] has 1 cells and 7 masks.*a grid of 81 cells"),
        ("55" + "[MASK]" * 79, r"texts\[0\] is not a Sudoku: row 1 has 5 more than once"),
        ("50" + "[MASK]" * 79, r"does not know '0'"),
    ],
)
def test_what_is_not_a_grid_is_refused(nine: Any, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        diffusion.infill(*nine, text)


def test_given_cells_of_an_answer_keep_the_clues(four: Any) -> None:
    with pytest.raises(ValueError, match=r"texts\[0\] cell 2 is 1, and the puzzle has 3 there"):
        diffusion.infill(*four, PUZZLE + "[MASK]1" + "[MASK]" * 14)


@pytest.mark.parametrize("steps", [1, 16])
def test_wrong_answers_are_reported(four: Any, steps: int) -> None:
    puzzles = [puzzle for puzzle, _ in sudoku.puzzles(4, 12, (4, 6), seed=7)]
    out = diffusion.generate(*four, puzzles, max_new_tokens=16, steps=steps, batch_size=5)
    solved = [sudoku.is_solution(puzzle, text) for puzzle, text in zip(puzzles, out.texts, strict=True)]
    assert [problem is None for problem in out.problems] == solved
    if steps == 1:
        assert not all(solved)
        number = solved.index(False)
        assert f"text {number + 1} is not a solution: {out.problems[number]}" in str(out._repr_html_())


def test_the_page_of_a_run_reports_the_answer(four: Any) -> None:
    out = diffusion.generate(*four, PUZZLE, max_new_tokens=16, steps=1, keep_history=True)
    values = picture_values(*four, out)
    assert (values["checked"], values["problem"]) == (True, "row 1 has 4 more than once")


def test_a_grid_with_its_masks_is_checked(nine: Any) -> None:
    out = diffusion.infill(*nine, GRID.replace("0", "[MASK]"), steps=3)
    assert [problem is None for problem in out.problems] == [sudoku.is_solution(GRID, out.texts[0])]


def test_other_models_fill_any_text() -> None:
    model, tokenizer = diffusion.load("molecules", device="cpu")
    out = diffusion.generate(model, tokenizer, "CC(=O)O", max_new_tokens=8)
    assert out.problems == []
    with pytest.raises(ValueError, match=r"does not know '&' in the text 'C&C'"):
        diffusion.generate(model, tokenizer, "C&C", max_new_tokens=8)


@pytest.mark.skipif(importlib.util.find_spec("fastapi") is None, reason="the extra playground is not installed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:starlette")
def test_the_server_refuses_and_reports_the_same(four: Any) -> None:
    from fastapi.testclient import TestClient

    from textguide.diffusion.serving.server import CanvasService, application
    from textguide.serving.rules import Rules

    with TestClient(application(CanvasService("sudoku4", *four), Rules())) as client:
        bad = client.post("/v1/completions", json={"prompt": "1111222233334444", "max_tokens": 16})
        assert bad.status_code == 400
        assert "row 1 has 1 more than once" in bad.json()["error"]["message"]
        body = {"prompt": PUZZLE, "max_tokens": 16}
        right = client.post("/v1/completions", json=body).json()["choices"][0]
        assert (right["text"], right["valid"], right["problem"]) == ("4312124331242431", True, None)
        wrong = client.post("/v1/completions", json={**body, "steps": 1}).json()["choices"][0]
        assert (wrong["valid"], wrong["problem"]) == (False, "row 1 has 4 more than once")
        streamed = client.post("/v1/completions", json={**body, "steps": 1, "stream": True}).text
        assert '"problem": "row 1 has 4 more than once"' in streamed

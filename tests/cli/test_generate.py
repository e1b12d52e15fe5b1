"""``textguide generate``: what it prints for every way in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import textguide
from textguide import CAIF, CFG, Guidance, generation
from textguide.guidance import as_guidance

from .conftest import Run

NEW = ("--max-new-tokens", "6")


@pytest.fixture(scope="session")
def loaded(model_folder: Path) -> tuple[Any, Any]:
    return textguide.load(str(model_folder), device="cpu")


def expected(loaded: tuple[Any, Any], prompts: Any, guidance: Any = None, **options: Any) -> list[str]:
    guidance = CFG() if guidance is None else guidance
    return textguide.generate(*loaded, prompts, guidance, max_new_tokens=6, **options).texts


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.strip("\n").split("\n")]


def test_text(run: Run, loaded: Any) -> None:
    outcome = run("generate", "hello", *NEW)
    assert outcome.code == 0
    assert outcome.out == "hello" + expected(loaded, "hello")[0] + "\n"
    assert "6 extra passes" in outcome.err


def test_several_prompts_are_numbered(run: Run, loaded: Any) -> None:
    outcome = run("generate", "ab", "cd", "def", *NEW, "--batch-size", "2")
    parts = []
    for number, (prompt, text) in enumerate(
        zip(["ab", "cd", "def"], expected(loaded, ["ab", "cd", "def"]), strict=True), 1
    ):
        parts.append(f"[{number}]\n{prompt}{text}\n")
    assert outcome.out == "".join(parts)


def test_json(run: Run, loaded: Any) -> None:
    outcome = run("generate", "ab", "ü\n", "--json", *NEW, "--scale", "3", "--negative-prompt", "zzz")
    guidance = CFG(3.0, "zzz")
    assert outcome.err == ""
    lines = records(outcome.out)
    assert [line["index"] for line in lines] == [0, 1]
    assert [line["prompt"] for line in lines] == ["ab", "ü\n"]
    assert [line["text"] for line in lines] == expected(loaded, ["ab", "ü\n"], guidance)
    for line in lines:
        assert line["tokens"] == 6
        assert line["log_likelihood"] < 0
        assert Guidance.from_dict(line["guidance"]) == guidance
        assert line["fingerprint"] == guidance.fingerprint
        assert line["effect"]["guided_steps"] == 12


def test_every_guidance_option_arrives(run: Run) -> None:
    outcome = run(
        "generate", "ab", "--json", *NEW, "--scale", "3", "--negative-system", "dull", "--chat",
        "--schedule", "clamp-linear:0.5", "--guidance-start", "0.1", "--guidance-stop", "0.9",
        "--min-scale", "0.5", "--max-scale", "4",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    guidance = Guidance.from_dict(records(outcome.out)[0]["guidance"])
    assert guidance == CFG(
        3.0, negative_system="dull", schedule="clamp-linear:0.5", start=0.1, stop=0.9, min_scale=0.5,
        max_scale=4.0,
    )  # fmt: skip


def test_scale_one_is_plain_decoding(run: Run, loaded: Any) -> None:
    outcome = run("generate", "hello", *NEW, "--scale", "1")
    assert outcome.out == "hello" + expected(loaded, "hello", CFG(1.0))[0] + "\n"
    assert "no guidance" in outcome.err


def test_stream(run: Run, loaded: Any) -> None:
    outcome = run("generate", "hello", "--stream", *NEW)
    assert outcome.code == 0
    assert outcome.out == "hello" + expected(loaded, "hello")[0] + "\n"
    assert outcome.err == ""


def test_file(run: Run, loaded: Any, tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "hey"}]
    # A line separator inside a JSON text is no end of line.
    odd = "a\u2028b\x0cc\x85d"
    lines = [
        "plain text",
        "",
        json.dumps("quoted\ntext"),
        json.dumps(chat),
        json.dumps({"prompt": "from an object"}),
        json.dumps({"messages": chat}),
        json.dumps(odd, ensure_ascii=False),
        "{ not json",
        "[5, 6, 7]",
    ]
    path = tmp_path / "prompts"
    prompts = [
        "plain text",
        "quoted\ntext",
        chat,
        "from an object",
        chat,
        odd,
        "{ not json",
        [5, 6, 7],
    ]
    for newline, start in (("\n", ""), ("\r\n", "\ufeff")):
        path.write_bytes((start + newline.join(lines)).encode())
        outcome = run("generate", "--file", str(path), "--json", *NEW)
        assert outcome.code == 0, outcome.err
        assert [line["prompt"] for line in records(outcome.out)] == prompts
        assert [line["text"] for line in records(outcome.out)] == expected(loaded, prompts)


def test_standard_input(run: Run, loaded: Any) -> None:
    for arguments in ((), ("--file", "-")):
        outcome = run("generate", *arguments, "--json", *NEW, stdin="ab\ncd\n")
        assert [line["text"] for line in records(outcome.out)] == expected(loaded, ["ab", "cd"])


def test_chats_and_system(run: Run, loaded: Any) -> None:
    chat = [{"role": "user", "content": "hey"}]
    outcome = run("generate", "hey", "--chat", *NEW)
    assert outcome.out == expected(loaded, [chat])[0] + "\n"
    outcome = run("generate", "hey", "--system", "be dull", *NEW)
    assert outcome.out == expected(loaded, [[{"role": "system", "content": "be dull"}, *chat]])[0] + "\n"
    outcome = run("generate", "hey", "--system", "be dull", "--stream", *NEW)
    assert outcome.out == expected(loaded, [[{"role": "system", "content": "be dull"}, *chat]])[0] + "\n"


def test_empty_prompt_stands_for_the_begin_token(run: Run, loaded: Any) -> None:
    outcome = run("generate", "", "--negative-prompt", "zzz", *NEW)
    assert outcome.out == expected(loaded, [[1]], CFG(1.5, "zzz"))[0] + "\n"


def test_several_continuations(run: Run) -> None:
    arguments = ("generate", "ab", "cd", "--num-return-sequences", "3", "--seed", "1", "--json", *NEW)
    outcome = run(*arguments)
    assert [line["index"] for line in records(outcome.out)] == [0, 0, 0, 1, 1, 1]
    assert len({line["text"] for line in records(outcome.out)}) > 2
    assert run(*arguments).out == outcome.out


def test_equal_batches_draw_different_text(run: Run) -> None:
    outcome = run("generate", "ab", "ab", "--batch-size", "1", "--seed", "1", "--temperature", "2", "--json", *NEW)
    first, second = records(outcome.out)
    assert first["text"] != second["text"]


def test_stop_text(run: Run, loaded: Any) -> None:
    text = expected(loaded, "hello")[0]
    outcome = run("generate", "hello", *NEW, "--stop", text[2])
    assert outcome.out == "hello" + text[: text.index(text[2]) + 1] + "\n"


def test_an_interrupt_keeps_what_is_finished(run: Run, loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = generation.generate, []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(generation, "generate", interrupted)
    outcome = run("generate", "ab", "cd", "ef", "--batch-size", "1", "--json", *NEW)
    assert outcome.code == 130
    assert [line["text"] for line in records(outcome.out)] == expected(loaded, ["ab"])
    assert outcome.err.strip().splitlines() == ["textguide generate: interrupted"]
    assert len(calls) == 2


def test_a_classifier_guides(run: Run, loaded: Any) -> None:
    outcome = run(
        "generate", "ab", "c", "--json", *NEW, "--classifier", "sentiment", "--target", "positive", "--weight", "-3",
        "--candidates", "20", "--every", "2",
    )  # fmt: skip
    guidance = CAIF("sentiment", "positive", -3.0, top_k=20, every=2)
    lines = records(outcome.out)
    assert [line["text"] for line in lines] == expected(loaded, ["ab", "c"], guidance)
    assert Guidance.from_dict(lines[0]["guidance"]) == guidance
    assert lines[0]["effect"]["reweighed_steps"] == 6
    both = run(
        "generate", "ab", "--json", *NEW, "--scale", "2", "--classifier", "sentiment", "--target", "positive",
        "--classifier", "sentiment", "--target", "0", "--weight", "1", "--weight", "2", "--candidates", "0",
    )  # fmt: skip
    parts = [CFG(2.0), CAIF("sentiment", "positive", 1.0, top_k=None), CAIF("sentiment", "0", 2.0, top_k=None)]
    assert Guidance.from_dict(records(both.out)[0]["guidance"]) == as_guidance(parts)
    assert records(both.out)[0]["text"] == expected(loaded, "ab", parts)[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--classifier", "sentiment"], "--target"),
        (["--classifier", "sentiment", "--target", "glad"], "'glad'"),
        (["--classifier", "sentiments", "--target", "positive"], "sentiments"),
        (["--target", "positive"], "--classifier"),
        (["--classifier", "sentiment", "--target", "positive", "--candidates", "5000"], "--candidates=5000"),
        (["--classifier", "sentiment", "--target", "positive", "--weight", "1", "--weight", "2"], "--weight"),
    ],
)
def test_wrong_classifier_arguments(run: Run, arguments: list[str], message: str) -> None:
    outcome = run("generate", "ab", *NEW, *arguments)
    assert outcome.code == 2
    assert message in outcome.error


def test_speculation_writes_the_same_text(run: Run, loaded: Any) -> None:
    outcome = run("generate", "hello", *NEW, "--speculation", "prompt-lookup")
    assert outcome.code == 0
    assert outcome.out == "hello" + expected(loaded, "hello")[0] + "\n"
    assert "guesses accepted" in outcome.err
    outcome = run("generate", "hello", *NEW, "--speculation", "recycling", "--json")
    assert records(outcome.out)[0]["speculation"]["passes"] > 0


def test_forks_and_corrected_guidance(run: Run) -> None:
    outcome = run("generate", "hello", *NEW, "--guidance", "eager:entropy_threshold=0.1,max_branches=3", "--json")
    assert outcome.code == 0, outcome.err
    texts = records(outcome.out)
    assert 1 < len(texts) <= 3
    assert "forked_from" not in texts[0]
    assert texts[1]["forked_from"][0] == 0
    guidance = "cfg:scale=1.5 + feynman-kac:particles=3"
    outcome = run("generate", "hello", *NEW, "--guidance", guidance, "--seed", "0", "--json")
    assert outcome.code == 0, outcome.err
    assert [record["population"] for record in records(outcome.out)] == [0, 0, 0]


def test_an_empty_prompt_is_refused_if_both_branches_read_the_begin_token(run: Run) -> None:
    for command in ("generate", "explain"):
        outcome = run(command, "", *NEW)
        assert outcome.code == 2
        assert "a prompt is empty: it is the begin token, which the other branch reads too" in outcome.err
    assert run("generate", "", "--scale", "1", *NEW).code == 0

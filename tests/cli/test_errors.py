"""Wrong arguments: one line that names argument and value, and the exit code."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from textguide import cli

from .conftest import Run


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["x", "--scale", "much"], ["--scale", "'much'"]),
        (["x", "--scale", "nan"], ["scale=nan"]),
        (["x", "--scale", "inf"], ["scale=inf"]),
        (["x", "--max-new-tokens", "0"], ["--max-new-tokens=0"]),
        (["x", "--max-new-tokens", "1.5"], ["--max-new-tokens", "'1.5'"]),
        (["x", "--schedule", "sudden"], ["schedule='sudden'", "cosine"]),
        (["x", "--guidance-start", "0.9", "--guidance-stop", "0.1"], ["start=0.9", "stop=0.1"]),
        (["x", "--min-scale", "3", "--max-scale", "2"], ["--min-scale=3.0", "--max-scale=2.0"]),
        (["x", "--negative-prompt", "a", "--negative-system", "b"], ["negative_prompt", "negative_system"]),
        (["x" * 95], ["prompts[0]", "95", "96"]),
        (["x", "--negative-prompt", "y" * 200, "--max-new-tokens", "9"], ["negative_prompt[0]", "200", "96"]),
        (["x", "--device", "tpu"], ["device='tpu'"]),
        (["x", "--dtype", "int8"], ["dtype='int8'"]),
        (["x", "--max-new-tokens", "two"], ["--max-new-tokens", "'two'"]),
        (["--file", "/no/such/file"], ["--file /no/such/file"]),
    ],
)
@pytest.mark.parametrize("command", ["generate", "explain"])
def test_wrong_arguments(run: Run, command: str, arguments: list[str], parts: list[str]) -> None:
    # Later options win, so that the fixture's device must not hide the one under test.
    if "--device" in arguments:
        code, error = _main(command, arguments)
    else:
        outcome = run(command, *arguments)
        code, error = outcome.code, outcome.error
    assert code == 2
    assert error.startswith(f"textguide {command}: ")
    for part in parts:
        assert part in error


def _main(command: str, arguments: list[str]) -> tuple[int, str]:
    import contextlib
    import io

    with contextlib.redirect_stderr(io.StringIO()) as stream:
        code = cli.main([command, *arguments])
    (line,) = stream.getvalue().splitlines()
    return code, line


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["x", "--batch-size", "0"], ["--batch-size=0"]),
        (["x", "--num-return-sequences", "0"], ["--num-return-sequences=0"]),
        (["x", "y", "--stream"], ["--stream", "2"]),
        (["x", "--stream", "--json"], ["--stream", "--json"]),
        (["x", "--stream", "--num-return-sequences", "2"], ["--stream", "--num-return-sequences"]),
        ([], ["no prompt", "--file"]),
        (["x", "--max-new-tokens", "2", "--repetition-penalty", "-1"], ["penalty", "-1"]),
        (["x", "--max-new-tokens", "2", "--temperature", "-1"], ["temperature", "-1"]),
    ],
)
def test_wrong_arguments_of_generate(run: Run, arguments: list[str], parts: list[str]) -> None:
    outcome = run("generate", *arguments)
    assert outcome.code == 2
    for part in parts:
        assert part in outcome.error


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["x", "--top", "0"], ["top=0"]),
        (["x", "--min-prob", "1"], ["--min-prob=1.0"]),
        (["x", "--min-prob", "nan"], ["--min-prob=nan"]),
        (["x", "y"], ["unrecognized", "y"]),
    ],
)
def test_wrong_arguments_of_explain(run: Run, arguments: list[str], parts: list[str]) -> None:
    outcome = run("explain", *arguments)
    assert outcome.code == 2
    for part in parts:
        assert part in outcome.error


@pytest.mark.parametrize("command", ["generate", "explain"])
def test_prompt_files(run: Run, tmp_path: Path, command: str) -> None:
    empty = tmp_path / "empty"
    empty.write_text("\n  \n")
    outcome = run(command, "--file", str(empty))
    assert outcome.code == 2
    assert f"--file {empty}" in outcome.error
    outcome = run(command, "x", "--file", str(empty))
    assert outcome.code == 2
    assert f"--file {empty}" in outcome.error
    assert "one or the other" in outcome.error
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    outcome = run(command, "--file", str(binary))
    assert outcome.code == 2
    assert f"--file {binary} is not UTF-8" in outcome.error
    outcome = run(command, "--file", str(tmp_path))
    assert outcome.code == 2
    assert f"--file {tmp_path}" in outcome.error
    outcome = run(command, stdin="")
    assert outcome.code == 2
    assert "standard input has no prompt" in outcome.error


@pytest.mark.parametrize("line", ['{"text": "x"}', "[]", '{"prompt": 5}', '{"prompt": ""}', '[1, "a"]', "[[1]]"])
def test_lines_that_hold_no_prompt(run: Run, tmp_path: Path, line: str) -> None:
    path = tmp_path / "prompts"
    path.write_text(f"fine\n\n{line}\n")
    outcome = run("generate", "--file", str(path))
    assert outcome.code == 2
    assert "line 3" in outcome.error


def test_chat_without_template(run: Run, tmp_path: Path) -> None:
    from ..tiny_folder import save

    folder = save(tmp_path / "plain", chat=False)
    outcome = run("generate", "x", "--chat", model=str(folder))
    assert outcome.code == 2
    assert "prompts[0] is a chat" in outcome.error
    assert "template" in outcome.error


@pytest.mark.parametrize("command", ["generate", "explain"])
def test_unknown_model_folder(run: Run, command: str, tmp_path: Path) -> None:
    for name in (str(tmp_path / "nothing"), str(tmp_path)):
        outcome = run(command, "x", model=name)
        assert outcome.code == 2
        assert outcome.error.startswith(f"textguide {command}: ")
        assert name in outcome.error


def test_a_page_that_cannot_be_written(run: Run, tmp_path: Path) -> None:
    outcome = run("explain", "hello", "--max-new-tokens", "2", "--html", str(tmp_path), "--json")
    assert outcome.code == 1
    assert str(tmp_path) in outcome.error


def test_no_command_and_wrong_command(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["paint"], ["generate", "x", "--no-such-option"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert len(captured.err.splitlines()) == 1


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    import textguide

    for arguments, part in (
        (["--version"], f"textguide {textguide.__version__}"),
        (["--help"], "explain"),
        (["generate", "--help"], "--negative-prompt"),
        (["explain", "--help"], "--html"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == 0
        assert part in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "ab", "cd", "--batch-size", "1"],
        ["generate", "ab", "--json"],
        ["generate", "ab", "--stream"],
        ["explain", "ab"],
        ["explain", "ab", "--json"],
    ],
)
def test_a_reader_that_goes_away(run: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    pipe = os.fdopen(writer, "w")
    real: Any = sys.stdout
    monkeypatch.setattr(sys, "stdout", pipe)
    outcome = run(*arguments, "--max-new-tokens", "2")
    monkeypatch.setattr(sys, "stdout", real)
    assert outcome.code == 0
    assert "Traceback" not in outcome.err
    pipe.close()  # what the interpreter does at exit; raises where something was left to write


def test_an_interrupt_while_loading(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    from textguide.cli import options

    monkeypatch.setattr(options, "load", interrupted)
    for command in ("generate", "explain"):
        outcome = run(command, "x")
        assert outcome.code == 130
        assert outcome.out == ""


@pytest.mark.parametrize("command", ["generate", "explain", "classifier"])
@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("/nonexistent", ["'/nonexistent'", "check the path"]),
        ("nothing.gguf", ["there is no file nothing.gguf"]),
        (__file__, ["neither a model folder nor a GGUF file"]),
        ("smollm", ["'smollm'", "did you mean 'smollm2'?"]),
        ("SmolLM-2", ["did you mean 'smollm2'?"]),
        ("smollm2-smal", ["did you mean 'smollm2-small'?"]),
    ],
)
def test_names_that_lead_to_no_model(run: Run, command: str, name: str, parts: list[str]) -> None:
    asked = ["x"] if command != "classifier" else ["score", "zero-shot:good=good,bad=bad", "x"]
    outcome = run(command, *asked, model=name)
    assert outcome.code == 2
    assert outcome.error.startswith(f"textguide {command}: ")
    for part in parts:
        assert part in outcome.error


def test_a_gguf_file_on_the_command_line(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gguf", reason="the extra gguf is not installed")
    from ..models.tiny_gguf import tiny, write

    monkeypatch.setenv("TEXTGUIDE_CACHE", str(tmp_path / "cache"))
    path = write(tmp_path / "tiny.gguf", tiny())
    for command in ("generate", "explain"):
        outcome = run(command, "ab", "--max-new-tokens", "3", model=str(path))
        assert outcome.code == 0
        assert "Loading" not in outcome.err
    further = run("generate", "ab", "--guidance", "contrastive", "--extra-model", f"amateur={path}", "--max-new-tokens",
                  "2", model=str(path))  # fmt: skip
    assert further.code == 0
    assert len([entry for entry in (tmp_path / "cache").iterdir() if entry.is_dir()]) == 1
    (tmp_path / "cut.gguf").write_bytes(path.read_bytes()[:-900])
    outcome = run("generate", "ab", model=str(tmp_path / "cut.gguf"))
    assert outcome.code == 1
    assert "is cut off" in outcome.error

"""What a user looks for first: help with examples, doctor, completion, folders that are kept, how to go on."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from textguide import cli
from textguide.cli import doctor_command, main
from textguide.forward import facts, probes
from textguide.support import files

from .. import tiny_folder


def test_help_shows_examples_that_are_right(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    assert "examples:" in out
    lines = re.findall(r"^  textguide (\w+)", cli.EXAMPLES, re.MULTILINE)
    (commands,) = [a.choices for a in cli.build_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    assert set(lines) <= set(commands)
    assert all(command in out for command in commands)


def test_doctor_says_what_is_there(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTGUIDE_DATA", "/no/such/folder")
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"versions", "devices", "extras", "caches", "missing"}
    assert found["versions"]["textguide"]
    assert "cpu" in found["devices"]
    assert found["extras"]["eval"]["packages"]["lm-eval"]
    assert "TEXTGUIDE_DATA=/no/such/folder is not a folder" in found["missing"]
    assert main(["doctor"]) == 0
    assert "devices:\n  cpu: " in capsys.readouterr().out


def test_doctor_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    version = doctor_command._version
    monkeypatch.setattr(doctor_command, "_version", lambda name: None if name == "pillow" else version(name))
    found = doctor_command.examine()
    assert any(one.startswith("pillow") for one in found["extras"]["captioning"]["missing"])
    assert "captioning: pip install 'textguide[captioning]'" in found["missing"]


@pytest.mark.parametrize(
    ("known", "source"),
    [(True, "shipped with textguide, established with transformers"), (False, "probed now, with 7 tokens")],
)
def test_doctor_prints_what_is_known_of_a_model(
    known: bool, source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not known:
        monkeypatch.setattr(facts, "_entries", dict)
    assert main(["doctor", str(tiny_folder.save(tmp_path / "model"))]) == 0
    out = capsys.readouterr().out
    assert f"source: {source}" in out
    assert "padding: rows of different lengths may be read in one pass" in out
    assert "causal: yes" in out


@pytest.mark.parametrize("is_shipped", [True, False])
def test_doctor_prints_how_long_prompts_and_rows_of_other_lengths_are_read(
    is_shipped: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tiny_folder.save(tmp_path / "model"))
    if not is_shipped:
        monkeypatch.setattr(facts, "_entries", dict)
    assert main(["doctor", folder]) == 0
    out = capsys.readouterr().out
    assert "rows keep their own lengths: yes\n" in out
    assert "long prompts in chunks: yes\n" in out
    if is_shipped:
        entry = facts._entries()["LlamaForCausalLM"][0]
        other = {**entry, "reads_chunks": False, "stays_padded": "makes or changes masks itself"}
        monkeypatch.setattr(facts, "_entries", lambda: {"LlamaForCausalLM": [other]})
    else:
        monkeypatch.setattr(probes, "reads_chunks", lambda model: False)
        monkeypatch.setattr(probes, "stays_padded", lambda model: "makes or changes masks itself")
    assert main(["doctor", folder, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows keep their own lengths"] == "no: makes or changes masks itself"
    assert found["long prompts in chunks"] == "no: does not continue a cache by several tokens in one pass"


def test_doctor_prints_why_a_model_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def padding(model: Any) -> Any:
        raise ValueError(f"{model.name} keeps state outside its cache")

    monkeypatch.setattr(facts, "_entries", dict)
    monkeypatch.setattr(probes, "padding", padding)
    assert main(["doctor", str(tiny_folder.save(tmp_path / "model")), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["refused"] == "LlamaForCausalLM keeps state outside its cache"


def test_doctor_reports_files_that_the_package_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Listed(PurePosixPath):
        def locate(self) -> Path:
            return tmp_path / self

    names = ("here.py", "cached.pyc", "models/weights.safetensors", "models/other.json")
    (tmp_path / "here.py").touch()
    monkeypatch.setattr(doctor_command.importlib.metadata, "files", lambda name: [Listed(file) for file in names])
    message = "2 files of textguide, such as models/weights.safetensors: install textguide again"
    assert message in doctor_command.examine()["missing"]
    monkeypatch.setattr(doctor_command.importlib.metadata, "files", lambda name: None)
    assert not any("install textguide again" in line for line in doctor_command.examine()["missing"])


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_the_commands(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    out = capsys.readouterr().out
    assert "doctor" in out
    assert "negative-prompt" in out


def test_completion_needs_its_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 1
    assert "textguide[completion]" in capsys.readouterr().err


def test_a_folder_is_not_overwritten_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("x")
    data = tmp_path / "data.tsv"
    data.write_text("good\t1\nbad\t0\n")
    commands = (
        ["classifier", "train", str(data)],
        ["steering", "train", str(data)],
        ["value", "train", str(data), "--classifier", "sentiment", "--target", "positive"],
    )
    for command in commands:
        assert main([*command, "--out", str(out)]) == 2
        assert "is not empty; name another folder, or add --overwrite" in capsys.readouterr().err
    assert [file.name for file in out.iterdir()] == ["mine.txt"]
    assert files.vacant(out, overwrite=True) == out
    assert files.vacant(tmp_path / "new") == tmp_path / "new"


@pytest.mark.parametrize(
    ("output", "said"),
    [(["--output", "runs/a"], "run the same command again to resume from runs/a"), ([], "with --output FOLDER")],
)
def test_an_interrupted_run_says_how_to_go_on(
    output: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(arguments: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("textguide.cli.eval_command._settings", stop)
    assert main(["eval", "--tasks", "lambada_mini", *output]) == 130
    assert said in capsys.readouterr().err


def test_the_list_says_which_data_a_task_needs(capsys: pytest.CaptureFixture[str]) -> None:
    from textguide.tasks import catalogue

    assert set(catalogue.DATA) <= set(catalogue.names())
    ships = {name for name in catalogue.names() if name not in catalogue.DATA}
    assert ships == {"lambada_mini", "sudoku4", "sudoku6"}
    assert main(["eval", "--list"]) == 0
    out = capsys.readouterr().out
    assert "comes with textguide" in out
    assert "gpqa/gpqa_diamond_protected.zip" in out
    assert max(map(len, out.splitlines())) <= 80

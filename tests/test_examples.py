"""The scripts and notebooks in ``examples/`` run."""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

import textguide

from .marks import NEEDS_SMOLLM2

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py"))
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
SMALL = ["--model", "smollm2-small", "--max-new-tokens", "4"]


def load(script: str) -> dict[str, Any]:
    """The names of an example."""
    return runpy.run_path(str(EXAMPLES / script), run_name="example")


def test_the_page_names_every_example() -> None:
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert [name for name in (*SCRIPTS, *(path.name for path in NOTEBOOKS)) if f"({name})" not in page] == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_compiles(script: str) -> None:
    compile((EXAMPLES / script).read_text(encoding="utf-8"), script, "exec")


class TestScripts:
    pytestmark = NEEDS_SMOLLM2

    def test_pipeline(self, capsys: pytest.CaptureFixture[str]) -> None:
        load("pipeline.py")["main"](["The dragon", *SMALL, "--scale", "3"])
        plain, guided, effect = capsys.readouterr().out.splitlines()
        assert plain.removeprefix("plain: ") != guided.removeprefix("γ = 3: ")
        assert "4 extra passes" in effect

    def test_chat(self) -> None:
        chat = load("chat.py")["main"](SMALL, ["Who are you?\n", "Why?\n", "\n", "not read\n"])
        assert [turn["role"] for turn in chat] == ["system", *["user", "assistant"] * 2]

    def test_custom_classifier(self) -> None:
        texts = load("custom_classifier.py")["main"]([*SMALL, "--weight", "20"])
        assert texts["ornate"] != texts["plain"]

    def test_a_file_is_resumed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        datasets = pytest.importorskip("datasets", reason="datasets is in the extra eval")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        prompts = ["The dragon", "A song", "The door"]
        source, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
        source.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
        example = load("batch_file.py")
        asked = [str(source), str(out), *SMALL, "--batch-size", "2"]
        assert example["main"](asked) == 3
        whole = out.read_bytes()
        assert example["main"](asked) == 0
        out.write_bytes(whole[:-20])  # an interruption in the last line
        assert example["main"](asked) == 1
        assert out.read_bytes() == whole
        model, tokenizer = textguide.load("smollm2-small")
        expected = textguide.generate(model, tokenizer, prompts, "cfg:scale=1.5", max_new_tokens=4)
        assert [json.loads(line)["text"] for line in whole.splitlines()] == expected.texts
        with pytest.raises(ValueError, match="another guidance"):
            example["main"]([*asked, "--guidance", "cfg:scale=3"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebooks:
    def test_its_outputs_are_there(self, path: Path) -> None:
        cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
        assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
        outputs = [output for cell in cells for output in cell["outputs"]]
        assert not [output for output in outputs if output["output_type"] in ("error", "stream") and _failed(output)]
        assert [output for output in outputs if "text/html" in output.get("data", {})]

    @pytest.mark.parametrize("_", [pytest.param(None, marks=NEEDS_SMOLLM2)], ids=["runs"])
    @pytest.mark.filterwarnings("ignore")  # of Jupyter's own packages
    def test_it_runs(self, path: Path, _: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        nbclient = pytest.importorskip("nbclient", reason="nbclient is in the extra dev")
        nbformat = pytest.importorskip("nbformat", reason="nbformat comes with nbclient")
        monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        notebook = nbformat.read(path, as_version=4)
        nbclient.NotebookClient(
            notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
        ).execute()
        for cell in notebook.cells:
            assert not [output for output in cell.get("outputs", []) if output["output_type"] == "error"]


def _failed(output: dict[str, Any]) -> bool:
    return output["output_type"] == "error" or "Warning" in "".join(output.get("text", ""))

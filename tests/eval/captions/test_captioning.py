"""Captioning as a task: metrics against published figures, data of both kinds, a run that resumes."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from textguide import CFG, captioning
from textguide.cli import main
from textguide.eval import CaptioningOptions, read_run, run_captioning
from textguide.eval.captions import data, judge, metrics

DATA = os.environ.get("TEXTGUIDE_DATA")
ROOT = Path(__file__).parents[3]
sys.path.append(str(ROOT / "scripts" / "train"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import scenes

    target = tmp_path_factory.mktemp("scenes")
    scenes.write("test", 12, 5, target)
    return target


def _lines(name: str) -> list[str]:
    return [line for line in (Path(str(DATA)) / "captions" / name).read_text().splitlines() if line.strip()]


@pytest.mark.skipif(DATA is None, reason="needs TEXTGUIDE_DATA")
def test_metrics_are_those_of_nlg_eval() -> None:
    references = list(zip(_lines("nlgeval_ref1.txt"), _lines("nlgeval_ref2.txt"), strict=True))
    scores = metrics.reference_scores(_lines("nlgeval_hyp.txt"), references)
    assert scores.cider.mean() == pytest.approx(1.242192, abs=5e-7)
    assert scores.rouge_l.mean() == pytest.approx(0.522104, abs=5e-7)
    bleu = [float(scores.bleu(order)[0]) for order in (1, 2, 3, 4)]
    assert bleu == pytest.approx([0.55, 0.428174, 0.284043, 0.201143], abs=5e-7)


@pytest.mark.skipif(DATA is None, reason="needs TEXTGUIDE_DATA")
def test_metrics_are_those_published_for_magic() -> None:
    rows = json.loads((Path(str(DATA)) / "captions" / "magic_mscoco_result.json").read_text())
    scores = metrics.reference_scores([row["prediction"] for row in rows], [row["captions"] for row in rows])
    # Published with another tokenizer in the manner of the Penn treebank: the fourth digit may differ by two.
    assert scores.cider.mean() == pytest.approx(0.4930, abs=2e-4)
    assert float(scores.bleu(1)[0]) == pytest.approx(0.5682, abs=1e-4)
    assert float(scores.bleu(4)[0]) == pytest.approx(0.1288, abs=1e-4)
    assert scores.rouge_l.mean() == pytest.approx(0.3988, abs=1e-4)


def test_tokens_are_those_of_the_treebank() -> None:
    text = "The man's dog doesn't sit. A well-dressed (old) man, 3.5 \"feet\" -- tall; can't!"
    expected = "the man 's dog does n't sit a well-dressed old man 3.5 feet tall ca n't"
    assert metrics.tokenize(text) == expected.split()
    assert metrics.tokenize("Un café, 1,000 pièces") == ["un", "café", "1,000", "pièces"]
    assert metrics.tokenize("...") == []


@pytest.mark.skipif(shutil.which("java") is None, reason="METEOR needs Java")
def test_meteor_where_java_is_there() -> None:
    captions, references = ["a red dog runs", "a cat"], [["a red dog runs fast"], ["the cow sat", "two cows"]]
    scores = metrics.java_metrics(captions, references)
    assert scores["meteor"][0] > 0.4 > scores["meteor"][1]
    assert metrics.java_metrics([""], [["a"]]) == {}


def test_variety() -> None:
    assert metrics.distinct(["a dog", "a dog"], 1) == 0.5
    assert metrics.distinct(["a dog a dog"], 2) == pytest.approx(2 / 3)
    assert metrics.distinct(["", "a"], 2) == 0.0
    assert metrics.vocabulary_size(["A dog.", "a cat"]) == 3
    for captions, references in ((["a"], []), ([], []), (["a"], [[]]), (["a"], ["b"])):
        with pytest.raises(ValueError, match="references"):
            metrics.reference_scores(captions, references)


def test_corpus_bleu_of_weighted_captions_is_that_of_repeated_ones() -> None:
    captions, references = ["a red dog runs", "a cat"], [["a red dog runs fast"], ["the cat sat", "a cat"]]
    scores = metrics.reference_scores(captions, references)
    twice = metrics.reference_scores([*captions, captions[0]], [*references, references[0]])
    for order in (1, 2, 4):
        assert scores.bleu(order, np.array([[2.0, 1.0]]))[0] == pytest.approx(twice.bleu(order)[0], rel=1e-6)


def test_clip_scores_and_ranks() -> None:
    images = np.eye(3)
    captions = np.array([[1.0, 0, 0], [0.6, 0.8, 0], [0, 0, -1.0]])
    scores = judge.clip_score(images, captions)
    assert scores.tolist() == pytest.approx([2.5, 2.0, 0.0])
    # Every picture is at least as near to the third caption as its own one.
    assert judge.ranks(images, captions).tolist() == [1, 1, 3]
    references = [np.array([[0.0, 1, 0]]), np.array([[0.6, 0.8, 0.0], [1.0, 0, 0]]), np.eye(3)]
    assert judge.ref_clip_score(scores, captions, references).tolist() == pytest.approx([0, 4 / 3, 0])
    # Equal captions cannot tell pictures apart.
    assert judge.ranks(np.ones((2, 1)), np.ones((2, 1))).tolist() == [2, 2]
    with pytest.raises(ValueError, match="is not a dual encoder"):
        judge.DualEncoder(object(), None)


def test_captions_are_read_from_files_of_every_kind(tmp_path: Path) -> None:
    expected = [("a.png", ("one", "two, too")), ("b.png", ("three",))]
    coco = {
        "images": [{"id": 7, "file_name": "a.png"}, {"id": 9, "file_name": "b.png"}, {"id": 1, "file_name": "c.png"}],
        "annotations": [
            {"image_id": 7, "caption": "one"}, {"image_id": 9, "caption": "three"},
            {"image_id": 7, "caption": "two, too"},
        ],
    }  # fmt: skip
    listed = [{"image_name": "a.png", "captions": ["one", "two, too"]}, {"image_name": "b.png", "captions": ["three"]}]
    texts = {
        "captions.json": json.dumps(coco),
        "karpathy.json": json.dumps(listed),
        "captions.jsonl": "\n".join(map(json.dumps, listed)),
        "captions.tsv": "a.png\tone\na.png\ttwo, too\n\nb.png\tthree\n",
        "named.csv": 'image,caption\na.png,one\na.png,"two, too"\nb.png,three\n',
        "captions.csv": 'a.png,one\na.png,"two, too"\nb.png,three\n',
        "plain.json": json.dumps({"a.png": ["one", "two, too"], "b.png": "three"}),
    }
    for name, text in texts.items():
        place = tmp_path / name
        place.write_text(text)
        assert [(p.name, p.references) for p in data.read(place)] == expected, name
    assert [p.name for p in data.read(tmp_path)] == ["a.png", "b.png"]
    for name, text in (("bad.json", "{"), ("bad.tsv", "a.png"), ("none.json", "[]"), ("odd.json", "[3]")):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=r"cannot be read as captions|holds no captions"):
            data.read(tmp_path / name)
    with pytest.raises(ValueError, match="does not exist"):
        data.read(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="does not have one of captions"):
        data.read(tmp_path / "empty")


def test_a_run_measures_resumes_and_leaves_bad_files_out(folder: Path, tmp_path: Path) -> None:
    (folder / "test-00003.png").write_bytes(b"no image")
    model, processor = captioning.load("drawn-scenes")
    judge = captioning.load("drawn-scenes-dual")
    settings = [CFG(1.0), CFG(2.0)]
    options = CaptioningOptions(batch_size=4, contact_sheet=3, java=False)
    calls: list[int] = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    arguments: dict[str, Any] = {"judge": judge, "output": tmp_path / "run", "options": options}
    result = run_captioning(folder, settings, model, processor, **arguments)
    first = len(calls)
    assert any(note.startswith("Left out: test-00003.png") and "cannot be read" in note for note in result.notes)
    assert any("need Java and their own files: METEOR, SPICE" in note for note in result.notes)
    found = result.get("captioning", "cfg 2")
    assert found is not None
    assert found.primary == "cider,none"
    assert len(found.items["recall_at_1,none"]) == 11
    for name in ("bleu_4,none", "clip_score,none", "ref_clip_score,none", "words,none", "rouge_l,none"):
        value = found.metrics[name]
        assert value.low is not None
        assert value.value is not None
        assert value.low <= value.value <= value.high  # type: ignore[operator]
    assert found.metrics["vocabulary,none"].value
    written = {file.name for file in (tmp_path / "run").iterdir()}
    assert {"results.json", "report.md", "items.npz", "samples.jsonl", "trade.png", "captions.html"} <= written
    page = (tmp_path / "run" / "captions.html").read_text()
    assert page.count("<img") == 3
    config = json.loads((tmp_path / "run" / "results.json").read_text())["config"]
    assert (config["batch_size"], config["gen_kwargs"]["max_new_tokens"]) == (4, options.max_new_tokens)
    again = run_captioning(folder, settings, model, processor, **arguments)
    assert len(calls) == first
    assert again.tasks[1].extra == result.tasks[1].extra
    assert read_run(tmp_path / "run").get("captioning", "cfg 2").metrics == found.metrics  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="run"):
        run_captioning(folder, [CFG(3.0)], model, processor, **arguments)


def test_the_command_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "java_metrics", lambda *_: {})
    arguments = ["eval", "--tasks", "captioning", "--data", str(folder), "--scales", "1,3", "--limit", "3"]
    assert main([*arguments, "--output", str(tmp_path / "out"), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert [entry["label"] for entry in values["textguide"]["guidances"]] == ["cfg 1", "cfg 3"]
    for wrong, message in (
        (["eval", "--tasks", "captioning,lambada_mini", "--data", str(folder)], "does not run with other tasks"),
        (["eval", "--tasks", "captioning"], "needs --data"),
        ([*arguments, "--judge", "drawn-scenes"], "is not a dual encoder"),
        (["eval", "--tasks", "captioning", "--data", str(folder), "--guidance", "lm"], "needs a text-only model"),
    ):
        assert main(wrong) == 2
        assert message in capsys.readouterr().err

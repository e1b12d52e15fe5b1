"""Sweeps end to end: results folder, resume, unconditional contexts, chat templates, bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="the extra eval is not installed")

from textguide import CFG
from textguide.eval import GuidedLM, RunResult, SweepOptions, read_run, run_sweep
from textguide.eval.lm_eval_models import guided_lm as module
from textguide.eval.lm_eval_models.contexts import unconditional_context

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SETTINGS = [None, CFG(1.5), CFG(3.0)]


def sweep(
    folder: str, output: Path | None = None, settings: Any = None, tasks: Any = None, **options: Any
) -> RunResult:
    arguments = {"pretrained": folder, "batch_size": 4, "device": "cpu", "dtype": "float32"}
    arguments.update(options.pop("model_args", {}))
    options = {"limit": 6, **options}
    result = run_sweep(
        tasks or ["lambada_mini"], settings or SETTINGS, output=output, options=SweepOptions(**options),
        model_args=arguments, command="textguide eval …",
    )  # fmt: skip
    assert result is not None
    return result


def test_a_sweep_equals_separate_runs_and_writes_its_folder(tiny_model: str, tmp_path: Path) -> None:
    together = sweep(tiny_model, tmp_path / "run", log_samples=True)
    for setting in SETTINGS:
        alone = sweep(tiny_model, settings=[setting])
        label = alone.labels[0]
        for metric, value in alone.tasks[0].metrics.items():
            other = together.get("lambada_mini", label)
            assert other is not None
            assert value == other.metrics[metric]
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert set(found["results"]["lambada_mini"]) >= {"acc,none", "perplexity,none"}
    assert found["sweep"].keys() == {"plain", "cfg 1.5", "cfg 3"}
    for entries in found["sweep"].values():
        assert isinstance(entries["lambada_mini"]["acc_stderr,none"], float)
    config = found["config"]
    assert (config["model"], config["model_args"]["dtype"]) == ("textguide", "float32")
    assert {"batch_size", "limit", "num_fewshot", "gen_kwargs", "random_seed", "device"} <= set(config)
    assert config["limit"] == 6
    assert found["higher_is_better"]["lambada_mini"] == {"perplexity": False, "acc": True}
    assert found["textguide"]["fingerprints"] == {
        s.fingerprint and f"cfg {s.scale:g}": s.fingerprint for s in SETTINGS if s
    }
    assert str(Path.cwd()) not in (tmp_path / "run" / "results.json").read_text()
    rows = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert len(rows) == 18
    report = (tmp_path / "run" / "report.md").read_text()
    assert "cfg 1.5" in report
    assert "Against no guidance" in report
    assert read_run(tmp_path / "run").labels == together.labels


def test_a_killed_run_goes_on_where_it_was(tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sweep(tiny_model)
    original = GuidedLM._score
    answered: list[int] = []

    def dies(self: GuidedLM, items: Any, size: Any) -> Any:
        for number, answer in enumerate(original(self, items, size)):
            if number == 4:
                raise KeyboardInterrupt
            answered.append(number)
            yield answer

    monkeypatch.setattr(module.GuidedLM, "_score", dies)
    with pytest.raises(KeyboardInterrupt):
        sweep(tiny_model, tmp_path / "run")
    assert not (tmp_path / "run" / "results.json").exists()
    journal = tmp_path / "run" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-3])  # a last line that was cut short

    asked: list[int] = []

    def counts(self: GuidedLM, items: Any, size: Any) -> Any:
        asked.append(len(items))
        yield from original(self, items, size)

    monkeypatch.setattr(module.GuidedLM, "_score", counts)
    resumed = sweep(tiny_model, tmp_path / "run")
    assert asked[0] == 3
    for ours, theirs in zip(resumed.tasks, whole.tasks, strict=True):
        for metric, value in theirs.metrics.items():
            # Other batches round otherwise.
            assert ours.metrics[metric].value == pytest.approx(value.value, rel=1e-5)
    # And a third time nothing is left to do.
    asked.clear()
    sweep(tiny_model, tmp_path / "run")
    assert sum(asked) == 0


def test_a_folder_of_another_run_is_refused(tiny_model: str, tmp_path: Path) -> None:
    sweep(tiny_model, tmp_path / "run")
    before = (tmp_path / "run" / "results.json").read_bytes()
    with pytest.raises(ValueError, match="run"):
        sweep(tiny_model, tmp_path / "run", settings=[CFG(2.0)])
    with pytest.raises(ValueError, match="run"):
        sweep(tiny_model, tmp_path / "run", limit=5)
    assert (tmp_path / "run" / "results.json").read_bytes() == before


def test_chat_template_and_few_shot(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    original = GuidedLM.loglikelihood

    def keep(self: GuidedLM, requests: Any, **options: Any) -> Any:
        seen.extend(request.args[0] for request in requests)
        return original(self, requests, **options)

    monkeypatch.setattr(GuidedLM, "loglikelihood", keep)
    sweep(tiny_model, apply_chat_template=True, system_instruction="be brief", limit=2)
    assert all(text.startswith("<system>be brief\n<user>") for text in seen)
    seen.clear()
    sweep(tiny_model, num_fewshot=2, limit=2)
    assert all(text.count("\n\n") >= 2 for text in seen)


class _Task:
    multiple_input = False

    def __init__(self, description: str) -> None:
        self.description = description

    def get_config(self, name: str) -> Any:
        return self.description if name == "description" else None

    def doc_to_text(self, doc: dict[str, str]) -> str:
        return doc["text"]


def _request(context: str, question: str) -> Any:
    from lm_eval.api.instance import Instance

    return Instance("loglikelihood", {"text": question}, (context, " x"), 0, ("task", 0, 1))


def test_unconditional_contexts() -> None:
    tasks = {"task": _Task("Answer well.\n")}
    request = _request("Answer well.\nQ: a\nA: b\n\nQ: c\nA:", "Q: c\nA:")
    assert unconditional_context(tasks, request, "no-instruction") == "Q: a\nA: b\n\nQ: c\nA:"
    assert unconditional_context(tasks, request, "question-only") == "Q: c\nA:"
    bare = _request("Q: c\nA:", "Q: c\nA:")
    with pytest.raises(ValueError, match="no instruction to leave out"):
        unconditional_context(tasks, bare, "no-instruction")
    with pytest.raises(ValueError, match="no instruction or example to leave out"):
        unconditional_context(tasks, bare, "question-only")
    with pytest.raises(ValueError, match="needs the task"):
        unconditional_context({}, request, "no-instruction")
    with pytest.raises(ValueError, match="is not the end of its context"):
        unconditional_context(tasks, _request("Answer well.\nQ: z\nA:", "Q: c\nA:"), "question-only")


def test_question_only_moves_away_from_the_examples(tiny_model: str) -> None:
    last = sweep(tiny_model, settings=[CFG(2.0)], num_fewshot=2, limit=3)
    question = sweep(tiny_model, settings=[CFG(2.0)], num_fewshot=2, limit=3, model_args={"uncond": "question-only"})
    key = "perplexity,none"
    assert last.tasks[0].items[key].tolist() != question.tasks[0].items[key].tolist()
    assert any("question-only" in note for note in question.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["lambada_mimi"]}, "lambada_mini"),
        ({"tasks": ["lambada_openai"], "data": "no/such/folder"}, "no/such/folder"),
        ({"settings": [CFG(1.5), CFG(1.5)]}, "occurs twice"),
        ({"model_args": {"uncond": "no-instruction"}}, "no instruction"),
    ],
)
def test_bad_input(tiny_model: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sweep(tiny_model, **options)


def test_git_prints_nothing_outside_of_a_repository(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep(tiny_model, tmp_path / "run", settings=[None])
    assert "git" not in capfd.readouterr().err
    assert json.loads((tmp_path / "run" / "results.json").read_text())["git_hash"] is None


def test_a_limit_above_the_items_is_said(tiny_model: str, tmp_path: Path) -> None:
    result = sweep(tiny_model, tmp_path / "run", settings=[None], limit=60)
    size = result.tasks[0].metrics["acc,none"].n
    assert size < 60
    note = f"lambada_mini has {size} items, and all of them were used: fewer than the limit of 60."
    assert note in result.notes
    assert note in (tmp_path / "run" / "report.md").read_text()
    assert not any("limit" in note for note in sweep(tiny_model, settings=[None], limit=6).notes)

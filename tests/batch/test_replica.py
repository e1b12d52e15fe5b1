"""What becomes of rows: what generate and score make of each by itself, and errors of single rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import textguide
from textguide import AWRS, CFG
from textguide.batch import Columns, Settings, pipeline, run, shards
from textguide.batch.estimate import estimate
from textguide.batch.inputs import read, scan
from textguide.batch.replica import Replica
from textguide.constraints import Regex
from textguide.support.errors import NoParticleLeftWarning

from .conftest import write_jsonl

pytestmark = pytest.mark.filterwarnings("ignore::textguide.support.errors.GuidanceHadNoEffectWarning")
COLUMNS = Columns(negative_prompt="away", guidance="how", keep=("id",))
DRAWN = {"max_new_tokens": 6, "temperature": 1.0, "top_k": 0}
ROWS: list[Any] = [
    {"id": "a", "prompt": "ab", "continuation": "cd"},
    {"id": "b", "prompt": "a longer prompt than that", "away": "xyz", "continuation": "e"},
    {"id": 3, "prompt": "bad", "away": "other", "how": "apg:scale=3", "continuation": "fgh"},
    {"prompt": "plain", "how": "plain", "continuation": "cd"},
    {"id": ["x", 1], "prompt": [{"role": "user", "content": "hi"}], "how": {"method": "cfg", "scale": 2.5},
     "continuation": [9, 10, 11]},
    {"prompt": "cab", "how": '[{"method": "cfg", "scale": 2}, {"method": "beta-cfg"}]', "continuation": "a"},
    {"prompt": "dab", "how": "cfg:scale=hot", "continuation": "a"},
    {"prompt": "x" * 300, "continuation": "a"},
    {"prompt": "", "continuation": "a"},
    {"continuation": "a"},
    "no JSON at all",
    {"prompt": "cab", "how": "/etc/passwd.json", "continuation": "a"},
    {"prompt": "cab", "away": {"no": "prompt"}, "continuation": "a"},
    {"prompt": [5, 6, 100000], "continuation": "a"},
    {"prompt": "last", "how": "plain", "away": "nothing to move away from", "continuation": "a"},
]  # fmt: skip
WRONG = {
    5: "two guidances", 6: "scale='hot'", 7: "has 300 tokens", 9: "column 'prompt' is empty", 10: "no JSON at all",
    11: "rows open no files", 12: "column 'away' holds", 13: "100000", 14: "has no negative prompt",
}  # fmt: skip


@pytest.fixture(scope="module")
def loaded(model_folder: str) -> Any:
    return textguide.load(model_folder, device="cpu")


def settings(model_folder: str, **given: Any) -> Settings:
    base = Settings(
        "generate", model_folder, CFG(1.5, "zz"), columns=COLUMNS, options=DRAWN, seed=7, load={"device": "cpu"}
    )
    return replace(base, **given)


def alone(loaded: Any, row: Any, number: int, guidance: Any, **options: Any) -> Any:
    return textguide.generate(*loaded, [row["prompt"]], guidance, seed=7 + number, **{**DRAWN, **options})


def guidance_of(row: Any) -> Any:
    how = row.get("how", CFG(1.5, "zz"))
    guidance = textguide.guidance.as_guidance(how)
    return replace(guidance, negative_prompt=row["away"]) if "away" in row else guidance


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_rows_are_what_generate_makes_of_each(model_folder: str, loaded: Any, batch_size: int) -> None:
    found = Replica(settings(model_folder), batch_size).results(0, ROWS)
    assert [row["row"] for row in found] == list(range(len(ROWS)))
    assert [row.get("id") for row in found[:5]] == ["a", "b", "3", None, '["x", 1]']
    for number, (row, got) in enumerate(zip(ROWS, found, strict=True)):
        if number in WRONG:
            assert WRONG[number] in got["error"]
            assert "text" not in got
            continue
        assert "error" not in got, got
        expected = alone(loaded, row, number, guidance_of(row))
        assert got["text"] == expected.texts[0]
        assert got["tokens"] == len(expected.new_tokens[0])
        assert got["finish_reason"] == expected.finish_reasons[0]
        assert got["log_likelihood"] == pytest.approx(float(expected.log_likelihood), abs=1e-4)


def test_a_shared_seed_would_give_other_texts(model_folder: str, loaded: Any) -> None:
    """The test above can fail: rows that draw from one generator in turn write something else."""
    rows = [{"prompt": text} for text in ("ab", "cad", "bead")]
    found = [row["text"] for row in Replica(settings(model_folder)).results(0, rows)]
    out = textguide.generate(*loaded, ["ab", "cad", "bead"], CFG(1.5, "zz"), seed=7, **DRAWN)
    assert found[0] != out.texts[0] or found[1:] != out.texts[1:]
    moved = [row["text"] for row in Replica(settings(model_folder)).results(1, rows)]
    assert moved != found


def test_constraints_and_weights(model_folder: str, loaded: Any) -> None:
    date = AWRS(Regex("[a-f]{3}"), particles=4)
    rows = [{"prompt": "ab"}, {"prompt": "cad"}]
    found = Replica(settings(model_folder, guidance=[CFG(1.5), date])).results(0, rows)
    for number, (row, got) in enumerate(zip(rows, found, strict=True)):
        expected = alone(loaded, row, number, [CFG(1.5), date])
        (one,) = expected.weighted_sample(7 + number)
        assert got["text"] == expected.texts[one]
        assert got["log_weight"] == pytest.approx(float(expected.log_evidence))
    # Rows of an engine come together: each is drawn as if it were alone.
    together = textguide.generate(*loaded, ["ab", "cad"], [CFG(1.5), date], seed=7, **DRAWN)
    for place in range(2):
        rows_of = slice(4 * place, 4 * place + 4)
        alike = replace(
            together, new_tokens=together.new_tokens[rows_of], log_weights=together.log_weights[rows_of]
        ).weighted_sample(11)
        assert [together.weighted_sample_of(place, 11) - 4 * place] == alike
    long = Regex("[a-f]{40}")
    impossible = Replica(settings(model_folder, guidance=AWRS(long, particles=2))).results(0, rows)
    assert all("raise max_new_tokens" in row["error"] for row in impossible)
    blind = AWRS(long, particles=2, lookahead=None)
    with pytest.warns(NoParticleLeftWarning):
        nothing = Replica(settings(model_folder, guidance=blind)).results(0, rows)
    assert all("every particle" in row["error"] for row in nothing)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_rows_are_what_score_makes_of_each(model_folder: str, loaded: Any, batch_size: int) -> None:
    found = Replica(settings(model_folder, task="score", options={}), batch_size).results(0, ROWS)
    for number, (row, got) in enumerate(zip(ROWS, found, strict=True)):
        if number in WRONG:
            assert WRONG[number].replace("300", "300") in got["error"]
            continue
        expected = textguide.score(*loaded, [row["prompt"]], [row["continuation"]], guidance_of(row))
        assert got["log_likelihood"] == pytest.approx(float(expected.log_likelihood), abs=1e-4)
        assert got["is_greedy"] == bool(expected.is_greedy)
        assert got["tokens"] == int(expected.tokens)


def test_a_machine_that_fails_ends_the_run(model_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    replica = Replica(settings(model_folder))
    rows = [{"prompt": "ab"}, {"prompt": "cad"}]

    def failing(error: Exception, only: str | None = None) -> Any:
        real = Replica._generate

        def run(self: Replica, rows: Any) -> Any:
            if only is None or any(row.prompt == only for row in rows):
                raise error
            return real(self, rows)

        return run

    for error in (torch.OutOfMemoryError("out of memory"), MemoryError(), RuntimeError("the device is gone")):
        monkeypatch.setattr(Replica, "_generate", failing(error))
        with pytest.raises(type(error)):
            replica.results(0, rows)
    monkeypatch.undo()
    monkeypatch.setattr(Replica, "_generate", failing(RuntimeError("probabilities are no numbers"), "cad"))
    found = replica.results(0, rows)
    assert "error" not in found[0]
    assert found[1]["error"] == "RuntimeError: probabilities are no numbers"


def test_shards_are_whole_and_the_same_every_time(model_folder: str, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    chosen = settings(model_folder, rows_per_shard=6)
    inputs = scan(write_jsonl(tmp_path / "a.jsonl", ROWS), 6)
    fingerprint = chosen.fingerprint(inputs)
    written = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        (folder / f".{shards.name(inputs.spans[0], fingerprint)}.abcd").write_text("a part")
        with shards.claimed(folder, chosen, inputs):
            assert not list(folder.glob(".rows*"))
            replica = Replica(chosen, 4, folder, fingerprint)
            order = inputs.spans if folder.name == "one" else inputs.spans[::-1]
            for span in order:
                replica.do(span)
            assert shards.left(folder, inputs, fingerprint) == []
        written.append({file.name: file.read_bytes() for file in folder.glob("*.parquet")})
    assert written[0] == written[1]
    assert len(written[0]) == 3
    table = pandas.read_parquet(tmp_path / "one").sort_values("row")
    assert list(table.columns) == [
        "row",
        "id",
        *(["text", "tokens", "finish_reason", "log_likelihood", "log_weight", "error"]),
    ]
    assert list(table["row"]) == list(range(len(ROWS)))
    summary = shards.summary(tmp_path / "one", inputs, fingerprint)
    assert (summary.done, summary.errors) == (len(ROWS), len(WRONG))
    assert [row["error"] for row in replica.results(12, read(inputs.spans[2]))][:2] == list(table["error"][12:14])


KEPT = [
    {"prompt": "a", "whole": 7, "real": 1, "yes": True, "mixed": 1, "large": 2**70, "text": "x"},
    {"prompt": "b", "whole": -1, "real": 0.5, "yes": False, "mixed": "1", "large": 1},
    {"prompt": "c"},
]


def test_kept_columns_keep_their_type(model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One type in all shards; a run of an earlier version, whose columns all were text, has the same identity."""
    pandas = pytest.importorskip("pandas")
    keep = ("whole", "real", "yes", "mixed", "large", "given")
    rows = [{**row, "given": row["text"]} if "text" in row else row for row in KEPT]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    chosen = settings(model_folder, columns=Columns(keep=keep), rows_per_shard=1)

    def without_ray(chosen: Settings, spans: Any, folder: Path, fingerprint: str, **_: Any) -> None:
        replica = Replica(chosen, 2, folder, fingerprint)
        for span in spans:
            replica.do(span)

    monkeypatch.setattr(pipeline, "run", without_ray)
    run(chosen, path, tmp_path / "out")
    table = pandas.read_parquet(tmp_path / "out").sort_values("row")
    assert table["whole"].tolist()[:2] == [7, -1]
    assert table["real"].tolist()[:2] == [1.0, 0.5]
    assert table["yes"].tolist()[:2] == [True, False]
    assert table["mixed"].tolist()[:2] == ["1", "1"]
    assert table["large"].tolist()[:2] == [str(2**70), "1"]
    assert table["given"].tolist()[:1] == ["x"]
    assert table.iloc[2][list(keep)].isna().all()
    inputs = scan(path, 1)
    assert chosen.reading(inputs).identity(inputs)["kept"] == {"whole": "int64", "real": "float64", "yes": "bool_"}
    assert "kept" not in settings(model_folder, columns=Columns(keep=("given",))).reading(inputs).identity(inputs)
    assert estimate(chosen, path, tmp_path / "out").left == 0


def test_a_folder_belongs_to_one_run(model_folder: str, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    inputs = scan(path, 100)
    chosen = settings(model_folder)
    held, busy = shards.claimed(tmp_path / "out", chosen, inputs), shards.claimed(tmp_path / "out", chosen, inputs)
    with held, pytest.raises(OSError, match="another process is writing"), busy:
        pass
    # Where it runs does not matter, what it says does.
    with shards.claimed(tmp_path / "out", replace(chosen, load={"device": "cpu", "device_map": "auto"}), inputs):
        pass
    others = {
        "guidance": replace(chosen, guidance=CFG(2.0)), "seed": replace(chosen, seed=8),
        "options": replace(chosen, options={**DRAWN, "top_k": 5}), "load": replace(chosen, load={"dtype": "bfloat16"}),
        "columns": replace(chosen, columns=Columns()), "system": replace(chosen, system="Be brief."),
    }  # fmt: skip
    for name, other in others.items():
        assert other.fingerprint(inputs) != chosen.fingerprint(inputs)
        with (
            pytest.raises(ValueError, match=f"holds another run .*{name}"),
            shards.claimed(tmp_path / "out", other, inputs),
        ):
            pass
    write_jsonl(path, ROWS[:-1])
    with pytest.raises(ValueError, match="files"), shards.claimed(tmp_path / "out", chosen, scan(path, 100)):
        pass
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "x.parquet").write_text("")
    with pytest.raises(ValueError, match="no run of textguide"), shards.claimed(tmp_path / "theirs", chosen, inputs):
        pass
    with pytest.raises(ValueError, match="is a file"), shards.claimed(path, chosen, inputs):
        pass


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"task": "paint"}, "task='paint' must be one of"),
        ({"backend": "llama"}, "backend='llama' must be one of"),
        ({"task": "score", "backend": "vllm"}, "without guidance; use backend='transformers'"),
        ({"rows_per_shard": 0}, "rows_per_shard=0 must be"),
        ({"seed": -1}, "seed=-1 must be"),
        ({"options": {"num_return_sequences": 2}}, "num_return_sequences= does not work here"),
        ({"options": {"batch_size": 2}}, "give it to the run"),
        ({"options": {"streamer": 2}}, "use textguide.generate"),
        ({"guidance": CFG(1.5, ["a", "b"])}, "has 2 negative prompts"),
        ({"guidance": "eager"}, "textguide.eager"),
        ({"guidance": "corrsynth"}, "depend on its neighbours"),
        ({"columns": Columns(keep=("text",))}, "keep=text is a column of the results too"),
        ({"model": object()}, "must be a name"),
        ({"backend": "vllm", "guidance": "dola"}, "guidance: .*'dola'.*or backend='transformers'"),
        ({"backend": "vllm", "guidance": AWRS(Regex("\\d"))}, "does not travel with a request.*or backend="),
        ({"backend": "vllm", "guidance": AWRS(Regex("[0-9]"), critic=len)}, "critic=.*does not travel"),
        ({"backend": "vllm", "guidance": "contrastive:amateur=tiny"}, "needs the model 'tiny'"),
    ],
)
def test_settings_that_cannot_work(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**given)


def test_engines_without_gpus_share_the_memory() -> None:
    engine = Settings(model="smollm2", backend="vllm", options={"max_new_tokens": 4})
    assert engine.sharing_memory(4).load == {"gpu_memory_utilization": 0.2}
    assert engine.sharing_memory(1) is engine
    told = replace(engine, load={"kv_cache_memory_bytes": 1 << 30})
    assert told.sharing_memory(4) is told
    assert replace(engine, backend="transformers").sharing_memory(4).load == {}

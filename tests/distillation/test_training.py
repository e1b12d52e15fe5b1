"""Adapters that stand for guidance: what they are taught, that training resumes, and where they run."""

from __future__ import annotations

import copy
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import textguide
from textguide import CAIF, CFG, DistillSettings
from textguide.constraints import Regex
from textguide.distillation.reading import BatchReading, at_all_positions
from textguide.distillation.texts import Text, openings, read
from textguide.engine.given_texts import as_items, leading
from textguide.forward.low_rank import merged
from textguide.guidance import APG, AWRS, ContextAware, DExperts, Formula, Steering
from textguide.guidance.base import Guidance
from textguide.step.guided_step import guided_log_probs

from ..architectures import VOCAB, Tokenizer, build

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
QUICK: dict[str, Any] = {"steps": 10, "texts": 12, "tokens": 9, "batch_size": 4, "rank": 4, "learning_rate": 0.01}
PROMPTS = [[5, 9], [33, 7, 12], [8, 4]]


def rows(seed: int = 0, count: int = 3) -> list[Text]:
    rng = random.Random(seed)
    draw = lambda n: [rng.randrange(3, VOCAB) for _ in range(n)]  # noqa: E731
    return [Text(draw(rng.choice((2, 3))), draw(rng.choice((2, 4)))) for _ in range(count)]


def reading(model: Any, guidance: Guidance, every: bool, texts: list[Text], **models: Any) -> BatchReading:
    items = as_items(model, None, [t.prompt for t in texts], [t.continuation for t in texts], None, leading([guidance]))
    student = lambda ids, mask: model(input_ids=ids, attention_mask=mask).logits  # noqa: E731
    return BatchReading(
        student, model, texts, items, guidance, 1.5, all_positions=every, tokenizer=None, models=models, device="cpu"
    )


def logp(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "mamba"])
@pytest.mark.parametrize("guidance", [CFG(1.7), APG(2.0), Formula("1.5*cond - 0.5*last")], ids=lambda g: g.name)
def test_every_position_is_taught_what_guidance_says_at_the_end_of_a_prompt(name: str, guidance: Any) -> None:
    model, texts = build(name), rows()
    assert at_all_positions(guidance)
    found = reading(model, guidance, True, texts)
    expected = []
    for text in texts:
        row = [*text.prompt, *text.continuation]
        for end in range(1, len(row)):
            both = torch.stack([logp(model, row[:end]), logp(model, row[end - 1 : end])])[:, None]
            expected.append(guided_log_probs(guidance, both, textguide.guidance.Step(0.0))[0])
    torch.testing.assert_close(found.target, torch.stack(expected), atol=2e-5, rtol=0)
    tokens = [token for text in texts for token in [*text.prompt, *text.continuation][1:]]
    assert found.tokens.tolist() == tokens


@pytest.mark.parametrize(
    "guidance",
    [
        CFG(1.7),
        CFG(2.0, negative_prompt=[4, 4, 8]),
        CFG(1.5, schedule="linear"),
        DExperts(0.8),
        Steering(tuple(0.1 * n for n in range(32)), 0),
        CFG(1.5, start=0.5),
    ],
    ids=lambda g: g.fingerprint,
)
def test_continuations_are_taught_what_the_oracle_says(guidance: Any) -> None:
    model, texts = build("llama"), rows(1)
    models = {name: build("llama", seed) for seed, name in ((5, "expert"), (6, "anti-expert"))}
    models = models if guidance.name == "dexperts" else {}
    found = reading(model, guidance, False, texts, **models)
    start = 0
    for text in texts:
        length = len(text.continuation)
        given = textguide.score(model, Tokenizer(), [text.prompt], [text.continuation], guidance, models=models or None)
        own = found.target[start : start + length].gather(-1, torch.tensor(text.continuation)[:, None])[:, 0]
        torch.testing.assert_close(own, given.log_probs[0][0], atol=2e-5, rtol=0)
        start += length
    assert start == len(found.target)
    torch.testing.assert_close(found.target.exp().sum(-1), torch.ones(start), atol=1e-5, rtol=0)


def test_a_wrong_prompt_is_that_of_another_text() -> None:
    model, texts = build("llama"), rows(2)
    other = reading(model, CFG(1.5), False, texts).with_other_prompts()
    expected = []
    for number, text in enumerate(texts):
        row = [*texts[number - 1].prompt, *text.continuation]
        first = len(texts[number - 1].prompt)
        expected += [logp(model, row[:end])[row[end]] for end in range(first, len(row))]
    found = other.student.gather(-1, other.tokens[:, None])[:, 0]
    torch.testing.assert_close(found, torch.stack(expected), atol=2e-5, rtol=0)
    torch.testing.assert_close(other.original, other.student, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "guidance",
    [CFG(1.5, negative_prompt="x"), CFG(1.5, schedule="linear"), ContextAware(1.5, context="x"), DExperts()],
    ids=lambda guidance: guidance.fingerprint,
)
def test_other_prompts_and_schedules_have_no_meaning_at_all_positions(guidance: Any) -> None:
    assert not at_all_positions(guidance)


def trained(folder: Path, model: Any, guidance: Any = None, **more: Any) -> textguide.DistillResult:
    return textguide.distill(model, Tokenizer(), guidance or CFG(2.0), folder, prompts=PROMPTS, **{**QUICK, **more})


def test_an_adapter_comes_closer_to_guidance_and_leaves_its_model_alone(tmp_path: Path) -> None:
    model = build("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [value.requires_grad for value in model.parameters()]
    result = trained(tmp_path / "a", model, steps=60)
    assert sum(result.losses[-6:]) < 0.5 * sum(result.losses[:6])
    assert result.last_loss == pytest.approx(sum(result.losses[-6:]) / 6)
    assert "60 steps in" in result._repr_html_()
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert flags == [value.requires_grad for value in model.parameters()]
    assert {file.name for file in (tmp_path / "a").iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "distillation.json",
    }


class Killed(Exception):
    pass


@pytest.mark.parametrize("objective", ["forward-kl", "cca"])
@pytest.mark.parametrize("when", [("writing", 12), ("training", 6), ("training", 10)])
def test_a_run_that_was_killed_comes_out_the_same(tmp_path: Path, when: tuple[str, int], objective: str) -> None:
    model = build("llama")
    whole = trained(tmp_path / "whole", model, objective=objective, steps=16)

    def stop(what: str, done: int, of: int, loss: float | None) -> None:
        if (what, done) == when:
            raise Killed

    with pytest.raises(Killed):
        trained(tmp_path / "half", model, objective=objective, steps=16, progress=stop)
    again = trained(tmp_path / "half", model, objective=objective, steps=16)
    assert again.resumed == (10 if when == ("training", 10) else 0)
    assert again.losses == whole.losses
    one, other = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "half"))
    assert one == other
    assert len(set(whole.losses)) > 10


def test_another_seed_gives_another_adapter(tmp_path: Path) -> None:
    model = build("llama")
    for seed in (0, 1):
        trained(tmp_path / str(seed), model, seed=seed)
    one, other = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("0", "1"))
    assert one != other


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_the_same_guidance_runs_with_the_adapter_in_place_of_its_branch(tmp_path: Path, name: str) -> None:
    model = build(name)
    folder = tmp_path / "a"
    trained(folder, model, steps=40)
    fresh = build(name)
    for scale in (2.0, 1.4, 1.0, -1.0):
        guidance = CFG(scale, distilled=folder)
        out = textguide.generate(model, Tokenizer(), PROMPTS, guidance, max_new_tokens=6)
        plain = textguide.generate(merged(copy.deepcopy(model), folder, scale), Tokenizer(), PROMPTS, max_new_tokens=6)
        assert out.new_tokens == plain.new_tokens
        scored = textguide.score(model, Tokenizer(), PROMPTS, plain.new_tokens, guidance)
        torch.testing.assert_close(scored.log_likelihood[0], plain.log_likelihood.cpu(), atol=1e-4, rtol=0)
    # γ = 1 is the model as it is, and so is the model beside the adapter.
    as_it_was = textguide.generate(fresh, Tokenizer(), PROMPTS, max_new_tokens=6)
    assert textguide.generate(model, Tokenizer(), PROMPTS, max_new_tokens=6).new_tokens == as_it_was.new_tokens
    assert out.new_tokens != as_it_was.new_tokens


def test_the_dial_scales_what_the_adapter_adds(tmp_path: Path) -> None:
    model = build("llama")
    trained(tmp_path / "a", model, scales=(1.0, 1.5, 3.0), steps=12)
    kept = json.loads((tmp_path / "a" / "distillation.json").read_text())
    assert kept["scale"] == 3.0
    base = dict(model.named_parameters())
    differences = {
        scale: {
            name: (value - base[name]).detach()
            for name, value in merged(copy.deepcopy(model), tmp_path / "a", scale).named_parameters()
        }
        for scale in (1.5, 3.0)
    }
    whole = max(float(value.abs().max()) for value in differences[3.0].values())
    assert whole > 1e-3
    for name, value in differences[1.5].items():
        torch.testing.assert_close(value, differences[3.0][name] * 0.25, atol=1e-5, rtol=0)


def test_one_scale_of_several_is_taught_at_each_step() -> None:
    taught = DistillSettings(scales=(1.0, 1.5, 2.0)).guidance_by_step(CFG(3.0))
    assert taught == [(1.5, CFG(1.5)), (2.0, CFG(2.0))]


@pytest.mark.parametrize("source", ["plain", "guided", "given", "plain=1,given=1"])
def test_texts_of_every_source(tmp_path: Path, source: str) -> None:
    model = build("llama")
    given = [{"prompt": [5, 6], "completion": "hello"}, {"text": "once there was"}]
    seen: list[int] = []
    result = trained(
        tmp_path / "a",
        model,
        source=source,
        given=given,
        steps=2,
        progress=lambda what, done, of, loss: seen.append(done) if what == "writing" else None,
    )
    assert len(result.losses) == 2
    assert seen[-1] == QUICK["texts"]
    assert json.loads((tmp_path / "a" / "distillation.json").read_text())["texts"] == QUICK["texts"]


def test_given_texts_may_be_token_ids(tmp_path: Path) -> None:
    model, tokenizer = build("llama"), Tokenizer()
    rows = [{"prompt": "ab", "completion": "hello"}, {"prompt": "once", "completion": " there"}]
    ids = [{key: tokenizer(text).input_ids for key, text in row.items()} for row in rows]
    losses = [
        trained(tmp_path / str(n), model, source="given", given=given).losses for n, given in enumerate((rows, ids))
    ]
    assert losses[0] == losses[1]


def test_texts_under_a_constraint_are_learned_by_their_weights(tmp_path: Path) -> None:
    guidance = AWRS(Regex("[a-z ]{1,30}"), particles=2)
    model, tokenizer = textguide.load("smollm2-small")
    given: dict[str, Any] = {**QUICK, "prompts": ["The"], "texts": 6, "tokens": 14, "steps": 2}
    with pytest.raises(ValueError, match="weights whole texts, which cannot be learned from single steps; use"):
        textguide.distill(model, tokenizer, guidance, tmp_path / "a", **given)
    given |= {"objective": "likelihood", "source": "guided"}
    result = textguide.distill(model, tokenizer, guidance, tmp_path / "a", **given)
    assert len(result.losses) == 2
    # Two particles a prompt, each a text with its weight.
    kept = json.loads((tmp_path / "a" / "distillation.json").read_text())
    assert 6 <= kept["texts"] <= 12


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"objective": "cross"}, "objective='cross' must be one of forward-kl"),
        ({"source": "dreams"}, "source='dreams' must be one of plain, guided, given"),
        ({"source": "plain=x"}, "source='plain=x' must be one of"),
        ({"steps": 0}, "steps=0 must be a whole number of 1 or more"),
        ({"tokens": 1}, "tokens=1 leaves nothing to predict"),
        ({"tokens": 3}, "texts end at tokens=3; raise that"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 must be a number above 0"),
        ({"learning_rate": 1e30}, "the loss is not finite at step"),
        ({"scales": (1.0,)}, "trains nothing: γ = 1 changes nothing"),
        ({"guidance": CFG(1.0)}, "changes nothing as it is set; there is nothing to distil"),
        ({"guidance": CFG(1.5, negative_prompt=[4, 5]), "positions": "all"}, "positions='all' uses every token"),
        ({"guidance": APG(2.0), "objective": "gft"}, "uses γ and both branches of classifier-free guidance"),
        ({"source": "given"}, "source='given' has no texts"),
        ({"prompts": None, "source": "guided"}, "guided texts need prompts= of several tokens"),
        ({"prompts": None, "positions": "continuation"}, "positions='continuation' need"),
        ({"depth": 3}, "depth= is neither an argument of distill"),
        ({"settings": DistillSettings(), "steps": 3}, "settings= excludes"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_work_is_refused_by_name(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    own = {"prompts": PROMPTS, **(QUICK if "settings" not in more else {}), **more}
    guidance = own.pop("guidance", CFG(1.5))
    with pytest.raises(ValueError, match=message):
        textguide.distill(build("llama"), Tokenizer(), guidance, tmp_path / "a", **own)


def test_a_finished_adapter_and_another_run_are_not_overwritten(tmp_path: Path) -> None:
    model = build("llama")
    trained(tmp_path / "a", model)
    before = (tmp_path / "a" / "adapter_model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="has a finished adapter; name another folder, or pass overwrite=True"):
        trained(tmp_path / "a", model)
    assert (tmp_path / "a" / "adapter_model.safetensors").read_bytes() == before
    (tmp_path / "a" / "notes.txt").write_text("mine")
    trained(tmp_path / "a", model, seed=3, overwrite=True)
    assert (tmp_path / "a" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "a" / "adapter_model.safetensors").read_bytes() != before

    def stop(what: str, done: int, of: int, loss: float | None) -> None:
        if what == "training":
            raise Killed

    with pytest.raises(Killed):
        trained(tmp_path / "b", model, progress=stop)
    with pytest.raises(ValueError, match="has a run that differs in rank"):
        trained(tmp_path / "b", model, rank=8)


def test_an_adapter_of_another_model_or_of_nobody_is_refused(tmp_path: Path) -> None:
    trained(tmp_path / "a", build("llama"))
    guidance = CFG(1.5, distilled=tmp_path / "a")
    with pytest.raises(ValueError, match=r"was trained for .*, and this is another LlamaForCausalLM"):
        textguide.generate(build("llama", 3), Tokenizer(), PROMPTS, guidance, max_new_tokens=2)
    with pytest.raises(ValueError, match=r"has no distillation\.json; train an adapter"):
        textguide.generate(build("llama"), Tokenizer(), PROMPTS, CFG(1.5, distilled=tmp_path), max_new_tokens=2)
    with pytest.raises(ValueError, match="one strength for a whole text"):
        CFG(1.5, distilled="a", schedule="linear")
    shutil.rmtree(tmp_path / "a")


def test_the_card_of_distilled_guidance_goes_to_json_and_back() -> None:
    guidance = CFG(1.5, distilled=Path("some/where"))
    assert Guidance.from_json(guidance.to_json()) == guidance
    assert guidance.branches == ()
    assert "distilled" not in CFG(1.5).to_dict()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "one\n\ntwo\n"),
        ("a.jsonl", '{"prompt": "one"}\n{"prompt": "two"}\n'),
        ("a.csv", "prompt,completion\none,\ntwo,three\n"),
    ],
)
def test_files_of_prompts(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert [row["prompt"] for row in read(tmp_path / name)] == ["one", "two"]
    (tmp_path / "b.jsonl").write_text('{"question": "one"}\n')
    with pytest.raises(ValueError, match="row 1 has no 'prompt', 'messages' or 'text'"):
        read(tmp_path / "b.jsonl")
    with pytest.raises(ValueError, match="must be a file that ends in"):
        read(tmp_path / "nowhere.txt")
    (tmp_path / "named.txt").write_text("prompt\none\n")
    assert [row["prompt"] for row in read(tmp_path / "named.txt")] == ["one"]


def test_a_classifier_teaches_along_the_continuation() -> None:
    assert not at_all_positions(textguide.guidance.as_guidance([CFG(1.5), CAIF("sentiment", "positive")]))


def test_openings_are_words() -> None:
    _, tokenizer = textguide.load("smollm2-small")
    words = [tokenizer.decode(row) for row in openings(tokenizer)]
    assert len(words) > 500
    assert {"The", "In"} <= set(words)
    assert all(word.isalpha() and word.istitle() for word in words)

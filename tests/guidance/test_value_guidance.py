"""Value guidance: exact where the value is; heads fitted on rollouts, saved, loaded and asked."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import textguide
from textguide import CFG, Guidance, value
from textguide.classifiers import CausalScorer, CausalState, FunctionClassifier, ValueHead, load_value
from textguide.classifiers.causal_head import Head
from textguide.guidance import ValueGuidance
from textguide.guidance.places import check_place
from textguide.guidance.spec import parse
from textguide.reference import decoding
from textguide.support.errors import ModelUnavailableError

from ..architectures import VOCAB, Tokenizer, build
from ..cli.conftest import Run, model_folder, run  # noqa: F401

PROMPT = [11, 4, 52]
TOKENIZER = Tokenizer()


def low(tokens: Sequence[int]) -> float:
    """The attribute of a text of two tokens: one of them lies far below the other."""
    return float(abs(tokens[0] - tokens[1]) > 20)


class Exact(CausalScorer):
    """The logarithm of the probability that a text of two tokens has the attribute, by enumeration."""

    name, labels, what = "exact", ("value",), "value"

    def values(self, texts: Sequence[str]) -> torch.Tensor:
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "exact"}

    def start(self, ids: Sequence[Sequence[int]]) -> CausalState:
        return ExactState([list(row) for row in ids])


class ExactState(CausalState):
    def __init__(self, ids: list[list[int]]) -> None:
        self.ids = ids

    def value(self, text: list[int]) -> float:
        written = text[len(PROMPT) :]
        if len(written) == 2:
            share = low(written)
        else:
            nexts = [math.exp(p) for p in decoding.next_log_probs(build("llama"), text)]
            share = sum(p * low([*written, token]) for token, p in enumerate(nexts))
        return math.log(max(share, 1e-30))

    def log_prob(self, rows: Sequence[int], candidates: torch.Tensor) -> torch.Tensor:
        found = [
            [[self.value([*self.ids[r], t])] for t in row] for r, row in zip(rows, candidates.tolist(), strict=True)
        ]
        return torch.tensor(found)

    def current(self, rows: Sequence[int]) -> torch.Tensor:
        return torch.tensor([[self.value(self.ids[row])] for row in rows])

    def append(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        for row, token in zip(rows, tokens, strict=True):
            self.ids[row].append(int(token))

    def select(self, index: Sequence[int]) -> None:
        self.ids = [list(self.ids[row]) for row in index]


def test_with_the_true_value_texts_follow_the_model_given_the_attribute() -> None:
    """FUDGE's claim, by enumeration: every text has the probability p(text | attribute)."""
    model = build("llama")
    first = [math.exp(p) for p in decoding.next_log_probs(model, PROMPT)]
    after = {token: decoding.next_log_probs(model, [*PROMPT, token]) for token in range(VOCAB)}
    total = sum(p * math.exp(q) * low([one, two]) for one, p in enumerate(first) for two, q in enumerate(after[one]))
    out = textguide.generate(
        model, TOKENIZER, [PROMPT] * 4, ValueGuidance(Exact(), 1.0, None), max_new_tokens=2, do_sample=True, seed=1,
        top_k=0,
    )  # fmt: skip
    for row, (one, two) in enumerate(out.new_tokens):
        assert low([one, two])
        expected = math.log(first[one] * math.exp(after[one][two]) / total)
        assert out.log_likelihood[row].item() == pytest.approx(expected, abs=1e-3)
    # A judge of the text as it is, which does not look ahead, is another distribution.
    half = textguide.score(model, TOKENIZER, [PROMPT], out.new_tokens[:1], ValueGuidance(Exact(), 0.5, None))
    assert abs(half.log_likelihood[0, 0].item() - out.log_likelihood[0].item()) > 1e-3


def letters(texts: Sequence[str]) -> list[float]:
    return [sum(ord(letter) % 7 for letter in text) / 10 for text in texts]


KINDS = FunctionClassifier(
    lambda texts: torch.nn.functional.logsigmoid(torch.tensor([[-v, v] for v in letters(texts)]) - 1.0),
    ("no", "yes"),
    is_normalized=False,
)


@cache
def written(kind: str) -> value.Rollouts:
    judged: dict[str, Any] = {"reward": letters} if kind == "linear" else {"classifier": KINDS, "target": "yes"}
    return value.rollouts(
        build("llama"), TOKENIZER, [PROMPT, [5, 9]], number=8, max_new_tokens=6, batch_size=5, **judged
    )


@pytest.mark.parametrize("kind", ["linear", "probability"])
def test_a_head_is_the_regression_of_what_texts_got_on_their_prefixes(kind: str) -> None:
    model, found = build("llama"), written(kind)
    assert len(found.tokens) == 16
    assert found.prompts[0] == tuple(PROMPT)
    assert found.prompts[8] == (5, 9)
    texts = [TOKENIZER.decode([*row, *tokens]) for row, tokens in zip(found.prompts, found.tokens, strict=True)]
    expected = letters(texts) if kind == "linear" else KINDS.log_prob(texts)[:, 1].exp().tolist()
    assert found.rewards.tolist() == pytest.approx(expected, abs=1e-5)
    head, report = value.train(model, TOKENIZER, found, model_name="tiny", strength=0.5, batch_size=3, held_out=0.0)
    assert report["texts"] == 16
    assert report["prefixes"] == sum(map(len, found.tokens))
    # The plainest loop: every prefix read by itself; at the optimum the gradient vanishes.
    vectors, goals = [], []
    for row, tokens, reward in zip(found.prompts, found.tokens, found.rewards.tolist(), strict=True):
        for end in range(1, len(tokens) + 1):
            with torch.no_grad():
                states = model.base_model(torch.tensor([[*row, *tokens[:end]]])).last_hidden_state
            vectors.append(states[0, -1].double())
            goals.append(reward)
    matrix, goal = torch.stack(vectors), torch.tensor(goals, dtype=torch.float64)
    mean, deviation = matrix.mean(0), matrix.std(0)
    outputs = (matrix @ head.head.weights.double() + head.head.bias.double())[:, 0]
    error = (outputs if kind == "linear" else outputs.sigmoid()) - goal
    weights = head.head.weights.double()[:, 0] * deviation
    gradient = ((matrix - mean) / deviation).T @ error + weights / 0.5
    assert gradient.abs().max() < 2e-2
    assert abs(float(error.sum())) < 2e-2
    assert gradient.abs().max() < 0.05 * (((matrix - mean) / deviation).T @ (goal - goal.mean())).abs().max()


def test_it_equals_the_oracle_and_score() -> None:
    model = build("llama")
    head, _ = value.train(model, TOKENIZER, written("linear"), model_name="tiny", strength=0.5)
    guidance = ValueGuidance(head, 2.0, 12)
    prompts = [PROMPT, [30, 31, 5, 6, 44]]
    out = textguide.generate(model, TOKENIZER, prompts, [CFG(1.5), guidance], max_new_tokens=5)
    for row, prompt in enumerate(prompts):

        def reweigh(
            distribution: list[float], text: Sequence[int], index: int, s: float, prompt: Any = prompt
        ) -> list[float]:
            return decoding.reweighed(
                [guidance], distribution, prompt, text, index, s, text_of=lambda ids: ids,  # type: ignore
                score=lambda _, ids: float(head.values_ids([ids])[0, 0]),  # type: ignore
            )  # fmt: skip

        tokens, _ = decoding.generate(model, prompt, CFG(1.5), [prompt[-1:]], 5, reweigh=reweigh)
        assert out.new_tokens[row] == tokens
    scored = textguide.score(model, TOKENIZER, prompts, out.new_tokens, [CFG(1.5), guidance], horizon=5)
    torch.testing.assert_close(scored.log_likelihood[0], out.log_likelihood, atol=2e-3, rtol=0)


def test_a_head_raises_the_reward_that_it_was_trained_on() -> None:
    model = build("llama")
    found = value.rollouts(model, TOKENIZER, [PROMPT], reward=letters, number=256, max_new_tokens=6, batch_size=128)
    head, report = value.train(model, TOKENIZER, found, model_name="tiny", strength=0.05)
    assert set(report["explained"]) == {"first", "middle", "last"}  # a random model foresees little

    def mean(guidance: Any) -> float:
        out = textguide.generate(
            model, TOKENIZER, [PROMPT] * 64, guidance, max_new_tokens=6, do_sample=True, seed=9, top_k=0
        )
        texts = [TOKENIZER.decode([*PROMPT, *tokens]) for tokens in out.new_tokens]
        return sum(letters(texts)) / 64

    plain, up, down = mean(None), mean(ValueGuidance(head, 6.0, 30)), mean(ValueGuidance(head, -6.0, 30))
    assert up > plain + 1.5
    assert down < plain - 1.5


def test_saved_and_loaded(tmp_path: Path) -> None:
    model = build("llama")
    head, report = value.train(model, TOKENIZER, written("probability"), model_name="tiny")
    head.save(tmp_path / "head", report)
    again = load_value(tmp_path / "head", model, TOKENIZER)
    assert again.kind == "probability"
    assert torch.equal(again.values_ids([[5, 6], [7]]), head.values_ids([[5, 6], [7]]))
    assert (again.values_ids([[5, 6]]) <= 0).all()
    named = ValueGuidance(tmp_path / "head", top_k=9)
    assert Guidance.from_json(named.to_json()) == named
    assert parse(f"value:value={tmp_path / 'head'},top_k=9") == named
    one, other = (
        textguide.generate(model, TOKENIZER, [PROMPT], guidance, max_new_tokens=4)
        for guidance in (named, ValueGuidance(head, top_k=9))
    )
    assert one.new_tokens == other.new_tokens
    with pytest.raises(ModelUnavailableError, match="'tiny'"):  # another model: the named one is looked for
        load_value(tmp_path / "head", build("gpt2"), TOKENIZER)


def test_what_cannot_work_is_said() -> None:
    with pytest.raises(ValueError, match="value=3 must be a ValueHead"):
        ValueGuidance(3)
    with pytest.raises(ValueError, match="does not contain a classifier"):
        textguide.generate(build("llama"), TOKENIZER, [PROMPT], ValueGuidance("nothing here"), max_new_tokens=1)
    with pytest.raises(ValueError, match="kind='odd'"):
        ValueHead(build("llama"), TOKENIZER, Head(torch.zeros(32, 1), torch.zeros(1)), "odd", model_name="x")
    with pytest.raises(ValueError, match="pass reward=, or classifier="):
        value.rollouts(build("llama"), TOKENIZER, [PROMPT])
    with pytest.raises(ValueError, match="number=0"):
        value.rollouts(build("llama"), TOKENIZER, [PROMPT], reward=letters, number=0)
    same = value.Rollouts(((5,), (5,)), ((6,), (7,)), torch.ones(2))
    with pytest.raises(ValueError, match="with the same reward"):
        value.train(build("llama"), TOKENIZER, same, model_name="tiny")
    with pytest.raises(ValueError, match="strength=0"):
        value.train(build("llama"), TOKENIZER, written("linear"), model_name="tiny", strength=0)
    with pytest.raises(ValueError, match="only calls the classifier"):
        check_place(ValueGuidance("x"), "vllm")
    assert ValueGuidance("x", 0).is_neutral


def test_the_command(run: Run, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "prompts").write_text("one day\nthe good\n")
    arguments = [str(tmp_path / "prompts"), "--out", str(tmp_path / "out"), "--rollouts", "6", "--max-new-tokens", "4"]
    outcome = run("value", "train", *arguments, "--classifier", "sentiment", "--target", "positive", "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert report["kind"] == "probability"
    assert report["texts"] > 6
    text = run("generate", "one day", "--guidance", f"value:value={tmp_path / 'out'},top_k=5", "--max-new-tokens", "3")
    assert text.code == 0, text.err
    assert "give --reward, or --classifier" in run("value", "train", *arguments).error
    assert "belong together" in run("value", "train", *arguments, "--classifier", "sentiment").error

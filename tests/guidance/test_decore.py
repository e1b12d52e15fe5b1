"""DeCoRe: a model against itself without the heads that copy."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import textguide
from textguide.engine.model_views import copying_heads
from textguide.forward.attention_heads import TRIALS, CopyTest, retrieval_heads
from textguide.forward.model_adapter import adapter
from textguide.guidance import DeCoRe, Guidance, Step
from textguide.guidance.spec import as_guidance
from textguide.reference import decoding
from textguide.step.guided_step import guided_log_probs

from ..architectures import VOCAB, Tokenizer, build
from .oracles import INF, mixed, oracle, settings

IDS = [5, 9, 33, 7]
HEADS = ((0, 1), (1, 2), (1, 3))


@oracle("decore")
def decore(guidance: DeCoRe, logps: list[list[float]], s: float) -> list[float]:
    cond, masked = logps
    entropy = -sum(math.exp(value) * value for value in cond if value > -INF)
    alpha = guidance.alpha if guidance.alpha is not None else min(entropy, guidance.cap or INF)
    return decoding.normalized(mixed(cond, masked, 1 + alpha))


settings(DeCoRe(0.0), DeCoRe(heads=HEADS), DeCoRe(1.5, heads=((0, 0),)), DeCoRe(heads=((1, 1),), cap=0.7))


def test_the_entropy_is_that_of_every_row() -> None:
    sure, unsure = torch.tensor([0.98, 0.01, 0.01]).log(), torch.tensor([0.4, 0.3, 0.3]).log()
    cond, masked = torch.stack([sure, unsure]), torch.tensor([0.2, 0.4, 0.4]).log().expand(2, 3)
    guided = guided_log_probs(DeCoRe(), torch.stack([cond, masked]), Step())
    for row, logp in enumerate((sure, unsure)):
        alpha = -(logp.exp() * logp).sum()
        torch.testing.assert_close(guided[row], ((1 + alpha) * logp - alpha * masked[row]).log_softmax(-1))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "gpt_neox", "opt", "bloom"])
def test_heads_are_scored_by_what_they_look_at_while_a_text_copies_itself(name: str) -> None:
    model = build(name)
    test = CopyTest(VOCAB, adapter(model).max_positions)
    eager = type(model)._from_config(model.config, attn_implementation="eager").eval()
    eager.load_state_dict(model.state_dict())
    needle = test.needle
    scores = torch.zeros(model.config.num_hidden_layers, 4)
    for row in test.ids:
        text, second = row.tolist(), test.ids.shape[1] - needle
        first = next(n for n in range(second) if text[n : n + needle] == text[second:])
        with torch.no_grad():
            weights = eager(row[None], output_attentions=True).attentions
        for layer, found in enumerate(weights):
            for head in range(4):
                for step in range(needle - 1):
                    looked = int(found[0, head, second + step].argmax())
                    scores[layer, head] += (looked == first + step + 1) / (needle - 1) / TRIALS
    torch.testing.assert_close(copying_heads(model).float(), scores)
    assert 0 < scores.max() < 1
    order = sorted((-float(scores[n, h]), n, h) for n in range(len(scores)) for h in range(4))
    found = retrieval_heads(model, 2, copying_heads)
    assert found == tuple((layer, head) for score, layer, head in order if score < 0)[:2]
    by_name, auto = (
        textguide.generate(model, Tokenizer(), [IDS], guidance, max_new_tokens=6)
        for guidance in (DeCoRe(2.0, heads=found), DeCoRe(2.0, count=2))
    )
    assert by_name.new_tokens == auto.new_tokens
    torch.testing.assert_close(by_name.log_probs[0], auto.log_probs[0])
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def test_a_model_that_copies_nothing() -> None:
    model = build("llama", 3)
    with pytest.raises(ValueError, match="no attention head of LlamaForCausalLM copies from the text"):
        retrieval_heads(model, 2, lambda _: torch.zeros(2, 4))
    # What was found out about a model is kept.
    with pytest.raises(ValueError, match="no attention head"):
        textguide.generate(model, Tokenizer(), [IDS], DeCoRe(), max_new_tokens=2)


def test_spelling() -> None:
    guidance = DeCoRe(heads=[[1, 2], [0, 3], [1, 2]])
    assert guidance.heads == ((0, 3), (1, 2))
    assert Guidance.from_json(guidance.to_json()) == guidance
    assert as_guidance("decore:heads=auto,count=20,cap=2") == DeCoRe(count=20, cap=2.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": "all"}, "heads='all' must be 'auto', or pairs"),
        ({"heads": [(0, -1)]}, "heads=-1 must be a whole number"),
        ({"heads": ()}, "must be 'auto', or pairs"),
        ({"count": 0}, "count=0 must be a whole number"),
        ({"alpha": 1.0, "cap": 2.0}, "cap=2.0 only applies to alpha=None"),
    ],
)
def test_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeCoRe(**fields)
    with pytest.raises(ValueError, match="heads names head 4 of layer 0, and the model has 2 layers of 4 heads"):
        textguide.generate(build("llama"), Tokenizer(), [IDS], DeCoRe(heads=((0, 4),)), max_new_tokens=2)

"""Tokens of one vocabulary as tokens of another, and what that does to a distribution."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf

from textguide import LMGuidance
from textguide.captioning import VocabularyMap
from textguide.guidance import Guidance, Step
from textguide.step.guided_step import guided_log_probs

from . import models


def words(tokens: list[str]) -> Any:
    """A tokenizer with byte-level tokens, whose first is the end."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import WordLevel

    inner = Tokenizer(WordLevel({token: i for i, token in enumerate(["</s>", *tokens])}, unk_token="</s>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return tf.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="</s>")


def test_tokens_meet_by_their_bytes_and_the_newline_ends() -> None:
    own, other = words(["a", "Ġdog", "Ġcat", "Ċ"]), words(["Ċ", "Ġcat", "Ġcow", "a", "Ġdog"])
    tokens = VocabularyMap.between(own, 5, other, 8)
    assert tokens.index.tolist() == [-1, 4, 5, 2, -1]
    assert (tokens.end, tokens.ends, tokens.end_input) == (0, (0, 1), 0)
    assert tokens.inputs(torch.tensor([[1, 2, 0, 4]])).tolist() == [[4, 5, 0, 0]]
    logits = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    distribution, mapped = logits.log_softmax(-1), tokens.distribution(logits)
    torch.testing.assert_close(mapped[:, 1:4], distribution[:, [4, 5, 2]])
    torch.testing.assert_close(mapped[:, 0].exp(), distribution[:, 0].exp() + distribution[:, 1].exp())
    assert bool(torch.isneginf(mapped[:, 4]).all())


def test_too_little_in_common_is_refused() -> None:
    own, other = words(["a", "Ġdog", "Ġcat"]), words(["Ġcow", "a"])
    with pytest.raises(ValueError, match=r"only 1 of the captioner's 3 tokens .* \(33%; 90% are needed\)"):
        VocabularyMap.between(own, 4, other, 3)
    assert VocabularyMap.between(own, 4, other, 3, least=0.3).index.tolist() == [-1, 2, -1, -1]


def test_the_same_tokenizer_maps_onto_itself() -> None:
    tokenizer = models.tokenizer()
    tokens = VocabularyMap.between(tokenizer, models.VOCAB, tokenizer, models.VOCAB)
    first = len(models.SPECIAL)
    last = first + len(models.WORDS)
    assert tokens.index.tolist()[first:last] == list(range(first, last))


def test_the_guidance_is_a_value() -> None:
    guidance = LMGuidance(alpha=4.0, prompt="a dog\na cat\n")
    assert Guidance.from_json(guidance.to_json()) == guidance
    assert [branch.model for branch in guidance.branches] == ["", "language_model"]
    assert guidance.fingerprint != LMGuidance(alpha=4.0, beta=1.0, prompt="a dog\na cat\n").fingerprint
    for fields, message in (
        ({"alpha": float("nan")}, "alpha=nan"),
        ({"beta": "x"}, "beta='x'"),
        ({"prompt": ""}, "prompt"),
    ):
        arguments: dict[str, Any] = fields
        with pytest.raises(ValueError, match=message):
            LMGuidance(**arguments)


def test_forbidden_tokens_stay_forbidden_and_nothing_is_nan() -> None:
    inf = float("-inf")
    logp = torch.tensor([[[-1.0, inf, -1.0, -2.0]], [[-1.0, -1.0, inf, -1.0]], [[-1.0, -1.0, -1.0, inf]]])
    distribution = guided_log_probs(LMGuidance(alpha=2.0), logp, Step())
    assert torch.isneginf(distribution)[0].tolist() == [False, True, False, True]
    # −1 + 2·(−1) − 1·(−1) = −2; what only the branch without an image forbids keeps its conditional −1.
    assert float(distribution[0, 0] - distribution[0, 2]) == pytest.approx(-1.0)

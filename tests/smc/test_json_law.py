"""JSON documents in any order under AWRS, against the enumeration of all texts of a toy model."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from textguide.constraints import JSONSchema, Vocabulary
from textguide.guidance import AWRS
from textguide.reference import smc as reference

from .statistics import z_score
from .table import Text, floats, run, shares_hold

pytest.importorskip("jsonschema")

TOKENS = (b"", b'{"a":', b'{"b":1', b',"b":', b',"a":2', b',"a":', b"1", b"1.0}", b"}")
VOCABULARY = Vocabulary(TOKENS, frozenset({0}))
FOLLOWING = {(): (1, 2), (1, 3, 5): (6, 7), (2, 4, 6): (8, 3, 4, 5), (7, 8): (0,)}
"""The tokens that the toy model prefers after each token."""
LENGTH = 5
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": [1, 2]}, "b": {"const": 1}},
    "additionalProperties": False,
    "not": {"required": ["b"], "properties": {"a": {"const": 2}}},
    "minProperties": 1,
}


def is_member(text: Text, may_repeat: bool = False) -> bool:
    """Whether a text is a document with unique keys, judged by hand."""
    try:
        pairs = json.loads(b"".join(TOKENS[token] for token in text), object_pairs_hook=list)
    except ValueError:
        return False
    if not isinstance(pairs, list) or not pairs:
        return False
    keys = [key for key, _ in pairs]
    values = dict(pairs)
    if not may_repeat and len(set(keys)) < len(keys):
        return False
    if values.get("a", 1) not in (1, 2) or values.get("b", 1) != 1:
        return False
    return "b" not in values or values.get("a", 2) != 2  # `not` also forbids b without a


def law(text: Text) -> Tensor:
    """Log-probabilities of the toy model, which depend on the last token and a little on the length."""
    scores = torch.linspace(0.0, 0.3, len(TOKENS)) * (1 + len(text))
    for tokens, preferred in FOLLOWING.items():
        if text[-1:] == () == tokens or (text and text[-1] in tokens):
            scores[list(preferred)] += 2.5
    return scores.log_softmax(-1)


@pytest.mark.parametrize("particles", [1, 3])
def test_documents_follow_the_law(particles: int) -> None:
    conditional, evidence = reference.global_conditional(floats(law), is_member, 0, LENGTH, len(TOKENS))
    assert (1, 6, 3, 7, 0) in conditional or (1, 6, 3, 7) in conditional
    assert (2, 5, 7, 0) in conditional or (2, 5, 7) in conditional
    guidance = AWRS(particles=particles, ess_threshold=0.5, lookahead=None)
    constraint = JSONSchema(SCHEMA, whitespace="none")
    texts, outcome = run(law, constraint, guidance, 1000, LENGTH, 3, VOCABULARY)
    finished = {text for text, is_done in zip(texts, outcome.finished.tolist(), strict=True) if is_done}
    assert finished <= conditional.keys()
    assert abs(z_score(outcome.log_evidence.exp().tolist(), evidence)) < 3.5
    shares_hold(texts, outcome, conditional, evidence)
    # The test sees a sampler that forgets the weights, and one for which keys may repeat.
    assert abs(z_score([math.exp(min(0.0, one)) * 0.8 for one in outcome.log_evidence.tolist()], evidence)) > 3.5
    _, repeated = reference.global_conditional(
        floats(law), lambda text: is_member(text, may_repeat=True), 0, LENGTH, len(TOKENS)
    )
    assert repeated > evidence

"""What workers saw leaves with the output of the step that they saw it in."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field

import pytest

from textguide.logits_processors.vllm_plugin.channel import messages_of, outbox_of


@dataclass
class Output:
    """As vLLM's ``ModelRunnerOutput``."""

    tokens: list[int] = field(default_factory=list)


EMPTY = Output()


class Wrapped:
    """As vLLM's asynchronous outputs."""

    def __init__(self, output: Output, name: str) -> None:
        self.name = name
        setattr(self, name, output)

    def get_output(self) -> Output:
        return getattr(self, self.name)


def runner(wrapper: str | None):
    """A class of model runners whose processor sees something at every step that has tokens."""

    class Runner:
        def sample_tokens(self, tokens):
            if not tokens:
                return EMPTY
            outbox_of(Runner).put({"a": {len(tokens): {"kl": 0.5}}})
            outbox_of(Runner).put({"a": {len(tokens) + 1: {"kl": 0.25}}, "b": {0: {"kl": tokens[0]}}})
            if tokens[0] < 0:
                raise RuntimeError("a step that fails")
            output = Output(tokens)
            return output if wrapper is None else Wrapped(output, wrapper)

    return Runner


@pytest.mark.parametrize("wrapper", [None, "_model_runner_output", "model_runner_output"])
def test_what_was_seen_leaves_with_its_step(wrapper):
    kind = runner(wrapper)
    assert outbox_of(kind) is outbox_of(kind)
    first, second = kind(), kind()
    with pytest.raises(RuntimeError):
        first.sample_tokens([-1, 0, 0])
    for one, tokens in ((first, [1]), (second, [2, 3]), (first, [4])):
        output = one.sample_tokens(tokens)
        output = pickle.loads(pickle.dumps(output if wrapper is None else output.get_output()))
        count = len(tokens)
        assert messages_of(output) == {
            "a": {count: {"kl": 0.5}, count + 1: {"kl": 0.25}},
            "b": {0: {"kl": tokens[0]}},
        }
    assert first.sample_tokens([]) is EMPTY
    assert messages_of(EMPTY) == {}

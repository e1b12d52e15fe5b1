"""What clients may ask, what is refused, and the pieces around it that need no vLLM."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace

import pytest
import torch

from textguide.guidance import CFG
from textguide.logits_processors.vllm_plugin.arguments import parse
from textguide.logits_processors.vllm_plugin.combination import Noise
from textguide.logits_processors.vllm_plugin.plan import Load, share, too_large
from textguide.logits_processors.vllm_plugin.request_guidance import RequestPrompt
from textguide.logits_processors.vllm_plugin.request_state import RequestState
from textguide.logits_processors.vllm_plugin.requests import Draw, Limits, Request


class Tokenizer:
    chat_template = "{{ messages }}"
    bos_token_id = 1

    def __call__(self, text):
        return SimpleNamespace(input_ids=[ord(c) for c in text])

    def apply_chat_template(self, messages, **_):
        return {"input_ids": [len(turn["content"]) for turn in messages]}


LIMITS = Limits(Tokenizer(), vocabulary=200, longest=20)


def reads(guidance, *negative):
    """A request whose one branch reads these tokens."""
    return Request(guidance, (negative,), ((1, ""),))


def params(**extra):
    return SimpleNamespace(extra_args=extra, logprobs=None)


def test_requests_that_are_understood():
    assert parse(params()) is None
    assert parse(SimpleNamespace(extra_args=None)) is None
    assert parse(params(other=1)) is None
    assert parse(params(guidance_scale=1.0)) is None
    assert parse(params(guidance_scale=2), None, RequestPrompt((5, 6))) == reads(CFG(2.0), 6)
    asked = parse(
        params(guidance_scale=2, negative_prompt="ab", guidance_schedule="linear", guidance_stop=0.5, other=3), LIMITS
    )
    assert asked == reads(CFG(2.0, schedule="linear", stop=0.5), 97, 98)
    assert parse(params(negative_prompt=[3, 4]), LIMITS) == reads(CFG(1.5), 3, 4)
    assert parse(params(negative_prompt_token_ids=[3, 4]), LIMITS) == reads(CFG(1.5), 3, 4)
    messages = [{"role": "system", "content": "abc"}]
    for given in (messages, json.dumps(messages)):
        assert parse(params(negative_messages=given), LIMITS) == reads(CFG(1.5), 3)
        with pytest.raises(ValueError, match=r"negative_messages makes a chat.*'Hi' is a plain text"):
            parse(params(negative_messages=given), LIMITS, RequestPrompt((5, 6), "Hi"))
    assert parse(params(guidance_scale=2, guidance_effect=True), None, RequestPrompt((5,))).effect
    assert Request.from_dict(json.loads(json.dumps(asked.to_dict()))) == asked


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"guidance_scale": "high"}, "guidance_scale='high'"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan"),
        ({"guidance_scale": [1]}, r"guidance_scale=\[1\]"),
        ({"guidance_sclae": 2}, "did you mean|guidance_scale"),
        ({"negative": "x"}, "negative_"),
        ({"guidance_schedule": "zigzag"}, "guidance_schedule='zigzag'"),
        ({"guidance_min_scale": 3, "guidance_max_scale": 2}, "guidance_min_scale=3.0.*guidance_max_scale=2.0"),
        ({"guidance_start": 0.7, "guidance_stop": 0.2}, "guidance_start=0.7 and guidance_stop=0.2"),
        ({"guidance_skip_threshold": -1}, "guidance_skip_threshold=-1"),
        ({"guidance_effect": "yes"}, "guidance_effect='yes'"),
        ({"negative_prompt": 5}, "negative_prompt=5"),
        ({"negative_prompt": [300]}, "token id 300; the vocabulary has 200"),
        ({"negative_prompt": [-1]}, "token id -1"),
        ({"negative_prompt": "x" * 20}, "20 tokens, and the engine has room for 19"),
        ({"negative_prompt_token_ids": "text"}, "negative_prompt_token_ids='text'"),
        ({"negative_messages": "{"}, "negative_messages='{' is not JSON"),
        ({"negative_messages": "[]"}, r"negative_messages=\[\]"),
        ({"negative_messages": '[{"role": "user"}]'}, "negative_messages="),
        ({"negative_messages": '"text"'}, "negative_messages='text'"),
        ({"negative_prompt": "a", "negative_messages": "[]"}, "exclude each other"),
    ],
)
def test_wrong_arguments_are_named(extra, named):
    with pytest.raises(ValueError, match=named):
        parse(params(**extra), LIMITS)


@pytest.mark.parametrize(
    ("name", "value"),
    [("prompt_logprobs", 1), ("logprobs", -1), ("logprob_token_ids", [1]), ("watermarking", True)],
)
def test_sampling_parameters_that_do_not_work_with_guidance(name, value):
    given = params(guidance_scale=2)
    setattr(given, name, value)
    with pytest.raises(ValueError, match=name):
        parse(given)
    given.extra_args = {}
    assert parse(given) is None


def test_text_needs_a_tokenizer():
    with pytest.raises(ValueError, match="negative_prompt='a' is text and needs a tokenizer"):
        parse(params(negative_prompt="a"))


def test_noise_is_that_of_multinomial_and_can_be_had_again():
    probs = torch.rand(50).softmax(-1)
    plain = torch.Generator().manual_seed(7)
    wanted = [int(torch.multinomial(probs[None], 1, generator=plain)) for _ in range(20)]
    noise = Noise(7)
    assert [noise.draw(probs, n) for n in range(20)] == wanted
    assert noise.draw(probs, 19) == wanted[19]  # thrown away and drawn again
    assert noise.draw(probs, 5) == wanted[5]  # after a preemption
    assert [Noise(7).draw(probs, n) for n in (0, 3)] == [wanted[0], wanted[3]]


def test_a_step_is_shared_so_that_groups_write_together():
    random_ = random.Random(0)
    together = waited = 0
    for _ in range(3000):
        loads = []
        for number in range(random_.randrange(1, 7)):
            left = [random_.choice((1, 1, 2, 7, 40)) for _ in range(random_.choice((1, 1, 2, 2, 3, 4)))]
            names = [f"r{number}-{place}" for place in range(len(left))]
            order = list(zip(names, left, strict=True))
            random_.shuffle(order)
            there = random_.randrange(1, len(order) + 1) if random_.random() < 0.4 else len(order)
            absent = dict(order[there:])
            loads.append(Load(dict(order[:there]), None if absent and random_.random() < 0.3 else absent))
        random_.shuffle(loads)
        budget, longest = random_.choice((1, 2, 8, 64, 500)), random_.choice((0, 0, 16))
        plan = share(loads, budget, longest)
        assert sum(plan.tokens.values()) + sum(plan.arrivals.values()) + plan.left == budget
        assert set(plan.tokens) == {request for load in loads for request in load.running}
        for load in loads:
            writes = {request: plan.tokens[request] == remaining for request, remaining in load.running.items()}
            for request, remaining in load.running.items():
                assert 0 <= plan.tokens[request] <= remaining
                assert not longest or plan.tokens[request] <= longest
            if load.is_alone:
                continue
            assert len(set(writes.values())) == 1
            for request, unread in (load.absent or {}).items():
                assert (request in plan.arrivals) == all(writes.values())
                assert plan.arrivals.get(request, unread) == unread
                assert not longest or plan.arrivals.get(request, 0) <= longest
            assert load.absent is not None or not any(writes.values())
            together, waited = together + all(writes.values()), waited + (not all(writes.values()))
        wanted = sum(sum((*load.running.values(), *(load.absent or {}).values())) for load in loads)
        if budget >= wanted and not longest:
            assert all(
                plan.tokens[request] == remaining
                for load in loads
                if load.absent is not None
                for request, remaining in load.running.items()
            )
    assert min(together, waited) > 1000


def test_what_can_never_stand_together_is_told():
    assert too_large((30, 30), 2, 2, 4, 16) is None
    assert too_large((30, 30), None, None, None, 16) is None
    assert "takes 3 places, and max_num_seqs is 2" in too_large((1, 1, 1), 2, 9, 9, 16)
    assert "take 3 tokens per step, and max_num_batched_tokens is 2" in too_large((1, 1, 1), 3, 2, 9, 16)
    assert "may need 80 tokens of cache, and there is room for 64" in too_large((33, 30), 2, 2, 4, 16)


def test_branches_rest_outside_of_their_window():
    state = RequestState(Request(CFG(2.0, start=0.25, stop=0.5), ((1,),), ((1, ""),), Draw(), horizon=101))
    assert [n for n in range(101) if state.needs_branches(n)] == list(range(25, 51))
    assert not state.can_drop_branches(24)
    assert state.can_drop_branches(51)
    assert state.can_drop_branches(10)

"""Both processors on an engine's moves, step by step, against a dictionary model."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from textguide.guidance import APG, CFG, NAG, AnnealedCFG, Formula, Step
from textguide.guidance.algebra import log_softmax
from textguide.logits_processors.vllm_plugin.batch_rows import GroupRows, Member
from textguide.logits_processors.vllm_plugin.combination import GuidedRow, Noise, guide
from textguide.logits_processors.vllm_plugin.extras import OURS
from textguide.logits_processors.vllm_plugin.processor_v1 import FirstRunnerProcessor
from textguide.logits_processors.vllm_plugin.processor_v2 import SecondRunnerProcessor
from textguide.logits_processors.vllm_plugin.requests import MAIN, Draw, Request
from textguide.step.guided_step import guided_log_probs

STEPS = 3_000
WORDS = 6
PLACES = 10
CONFIG = SimpleNamespace(instance_id="fuzz")
GUIDANCES = [
    CFG(1.5),
    CFG(3.0, schedule="linear"),
    CFG(0.5),
    CFG(2.0, stop=0.5),
    CFG(2.0, renormalize=False),
    APG(2.0, parallel=0.3),
    NAG(4.0, schedule="linear"),
    AnnealedCFG(2.0, start=0.5),
    Formula("1.5*cond - 0.25*last - 0.25*P('x')"),
    Formula("max(cond, P('x')) + P('y') - last"),
    Formula("2*cond"),
]


class FakeRequest:
    """A request as an engine holds it."""

    def __init__(
        self, name: str, prompt: list[int], asked: Request | None, place: int | None, group: str | None
    ) -> None:
        self.name, self.prompt, self.written = name, prompt, []
        self.asked, self.place, self.group = asked, place, group
        extra = None
        if asked is not None:
            ours = {"measures": False, "request": asked.to_dict()} if place == MAIN else {}
            extra = {OURS: {"group": group, "place": place, **ours}}
        self.params = SimpleNamespace(extra_args=extra)


class Engine:
    """Requests that come, run, are preempted, resumed and aborted: a row in one runner, an index in the other."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.rows: list[FakeRequest | None] = [None] * PLACES
        self.indices: dict[str, int] = {}
        self.waiting: list[FakeRequest] = []
        self.born = 0

    @property
    def running(self) -> list[FakeRequest]:
        return [request for request in self.rows if request is not None]

    def arrive(self) -> list[FakeRequest]:
        self.born += 1
        name, prompt = str(self.born), [self.random.randrange(WORDS) for _ in range(self.random.randrange(1, 4))]
        if self.random.random() < 0.3:
            return [FakeRequest(name, prompt, None, None, None)]
        draw = Draw()
        if self.random.random() < 0.5:
            draw = Draw(
                temperature=self.random.choice((0.5, 1.0)),
                top_k=self.random.choice((0, 3)),
                seed=self.born,
                repetition_penalty=self.random.choice((1.0, 1.3)),
                presence_penalty=self.random.choice((0.0, 0.5)),
            )
        guidance = self.random.choice(GUIDANCES)
        count = len(guidance.branches)
        prompts = tuple((1, 2, place) for place in range(count))
        readings = tuple((place, "") for place in range(1, count + 1))
        asked = Request(guidance, prompts, readings, draw, horizon=self.random.choice((1, 8)))
        return [
            FakeRequest(f"{name}-{place}", [1, 2] if place else prompt, asked, place, name)
            for place in range(count + 1)
        ]


def expected(request: FakeRequest, cond: torch.Tensor, others: list[torch.Tensor | None], noises: dict[str, Noise]):
    """The row of a main request, written out plainly."""
    asked, position = request.asked, len(request.written)
    assert asked is not None
    step = Step.at(position, asked.horizon)
    scores = cond
    if None not in others and asked.guidance.active(step):
        guided = guided_log_probs(asked.guidance, log_softmax(torch.stack([cond, *others]))[:, None], step)[0]
        scores = guided + cond.logsumexp(-1) if asked.guidance.renormalize else guided
    draw = asked.draw
    seen = set(request.prompt + request.written)
    for word in range(WORDS):
        if word in seen and draw.repetition_penalty != 1:
            scores = scores.clone()
            scores[word] *= draw.repetition_penalty if scores[word] < 0 else 1 / draw.repetition_penalty
        if word in request.written and draw.presence_penalty:
            scores = scores.clone()
            scores[word] -= draw.presence_penalty
    if not draw.temperature:
        return scores
    scores = scores / draw.temperature
    if draw.top_k:
        scores = scores.masked_fill(scores < scores.topk(draw.top_k).values[-1], -torch.inf)
    noise = noises.setdefault(request.name, Noise(draw.seed))
    token = noise.draw(scores.softmax(-1), position)
    return torch.full((WORDS,), -torch.inf).index_fill_(0, torch.tensor([token]), 0.0)


@pytest.mark.parametrize("seed", [0])
def test_both_processors_follow_an_engine(seed):
    engine = Engine(seed)
    first = FirstRunnerProcessor(CONFIG, "cpu", False)
    states = SimpleNamespace(
        prompt_len=SimpleNamespace(np=np.zeros(PLACES, int)),
        total_len=SimpleNamespace(gpu=torch.zeros(PLACES, dtype=torch.long)),
        all_token_ids=SimpleNamespace(gpu=torch.zeros(PLACES, 64, dtype=torch.long)),
    )
    second = SecondRunnerProcessor(CONFIG, states)
    noises: dict[str, Noise] = {}
    torch.manual_seed(seed)
    guided = alone = 0
    for _ in range(STEPS):
        removed, added, moved = [], [], []
        for row, request in enumerate(engine.rows):
            if request is None:
                continue
            chance = engine.random.random()
            # Finished, aborted, or out of room; and preempted, to come back in another place.
            if chance < 0.04 or len(request.written) > 50:
                noises.pop(request.name, None)
            elif chance < 0.08:
                engine.waiting.append(request)
            else:
                continue
            removed.append(row)
            engine.rows[row] = None
            del engine.indices[request.name]
        engine.waiting = [request for request in engine.waiting if engine.random.random() > 0.02]
        coming = engine.waiting + (engine.arrive() if engine.random.random() < 0.4 else [])
        engine.waiting = []
        for request in coming:
            if None not in engine.rows:
                engine.waiting.append(request)
                continue
            row = engine.rows.index(None)
            engine.rows[row] = request
            if row in removed:
                removed.remove(row)
            added.append((row, request.params, request.prompt, request.written))
            index = engine.random.choice([index for index in range(PLACES) if index not in engine.indices.values()])
            engine.indices[request.name] = index
            second.add_request(index, request.params)
            states.prompt_len.np[index] = len(request.prompt)
        while None in engine.rows[: len(engine.running)]:  # condense
            target = engine.rows.index(None)
            source = max(row for row, request in enumerate(engine.rows) if request is not None)
            engine.rows[target], engine.rows[source] = engine.rows[source], None
            moved.append((source, target, SimpleNamespace(name="UNIDIRECTIONAL")))
        count = len(engine.running)
        if count > 1 and engine.random.random() < 0.3:
            a, b = engine.random.sample(range(count), 2)
            engine.rows[a], engine.rows[b] = engine.rows[b], engine.rows[a]
            moved.append((a, b, SimpleNamespace(name="SWAP")))
        update = SimpleNamespace(removed=removed, added=added, moved=moved) if removed or added or moved else None
        first.update_state(update)
        if not count:
            continue
        logits = {request.name: torch.randn(WORDS) for request in engine.running}
        for row in logits.values():
            row[engine.random.randrange(WORDS)] = -torch.inf if engine.random.random() < 0.3 else 0.0
        wanted = {}
        for request in engine.running:
            if request.place == MAIN:
                others = [f"{request.group}-{n + 1}" for n in range(len(request.asked.prompts))]
                rows = [logits.get(name) for name in others]
                wanted[request.name] = expected(request, logits[request.name], rows, noises)
                wanted.update({name: wanted[request.name] for name in others if name in logits})
                guided, alone = guided + (None not in rows), alone + (None in rows)
        out = first.apply(torch.stack([logits[request.name] for request in engine.running]))
        check(engine.running, out, logits, wanted)

        order = engine.running
        engine.random.shuffle(order)
        indices = [engine.indices[request.name] for request in order]
        for request, index in zip(order, indices, strict=True):
            tokens = request.prompt + request.written
            states.all_token_ids.gpu[index, : len(tokens)] = torch.tensor(tokens)
            states.total_len.gpu[index] = len(tokens)
        context = SimpleNamespace(
            idx_mapping_np=np.array(indices),
            seq_lens_upper_bound_np=np.array([len(request.prompt + request.written) for request in order]),
        )
        out = second.apply(torch.stack([logits[request.name] for request in order]), context)
        check(order, out, logits, wanted)
        for request in order:  # a part of a group waits, as the scheduler sees to
            names = [] if request.asked is None else range(len(request.asked.prompts) + 1)
            if all(f"{request.group}-{place}" in logits for place in names):
                row = wanted.get(request.name, logits[request.name])
                request.written.append(int(row.argmax()))
    assert guided > STEPS / 2
    assert alone > STEPS


def same_distribution(ours, theirs):
    """Logits that differ by a constant make the same distribution; one finite score makes the same token."""
    torch.testing.assert_close(ours.log_softmax(-1), theirs.log_softmax(-1), rtol=1e-4, atol=1e-5)


def check(order, out, logits, wanted):
    for request, row in zip(order, out, strict=True):
        if request.name in wanted:
            same_distribution(row, wanted[request.name])
        else:
            assert torch.equal(row, logits[request.name])


@pytest.mark.parametrize("renormalize", [True, False])
def test_penalties_act_on_the_sums_of_a_guidance_that_does_not_renormalize(renormalize):
    cond, uncond = torch.randn(2, WORDS)
    guidance = CFG(2.0, renormalize=renormalize)
    asked = Request(guidance, ((1, 2),), ((1, ""),), Draw(repetition_penalty=1.3, logprobs=1), horizon=8)
    logits = torch.stack([cond, uncond])
    row = GuidedRow(asked, lambda: [0, 3], lambda: [2])
    (report,) = guide(logits, [GroupRows(0, (1,), Member("group", MAIN, row))], [1])
    sums = 2 * log_softmax(cond) - log_softmax(uncond)
    scores = log_softmax(sums) + cond.logsumexp(-1) if renormalize else sums
    penalised = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([[0, 3, 2]]), scores[None])[0]
    torch.testing.assert_close(logits[0], penalised)
    log_probs = log_softmax(sums) if renormalize else sums
    assert report.logprobs[0] == pytest.approx(float(log_probs[penalised.argmax()]), abs=1e-5)

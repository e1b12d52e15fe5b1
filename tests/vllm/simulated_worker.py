"""A worker that computes nothing: what it writes depends on what was written before, and on who stood beside whom.

It keeps, as vLLM's first model runner does, what each request has written, and what lies in its cache, token by token.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput

from textguide.logits_processors.vllm_plugin.extras import OURS
from textguide.logits_processors.vllm_plugin.request_state import RequestState
from textguide.logits_processors.vllm_plugin.requests import MAIN, Request

from . import simulated_populations

WORDS = 50
ALONE = WORDS - 1  # what a request writes beside which not all of its group stood


def _number(*parts: Any) -> int:
    return zlib.crc32(repr(parts).encode())


def word(name: str, written: tuple[int, ...], guided: bool) -> int:
    """The token behind ``written`` of the user's request ``name``; one whose name ends with a tilde repeats itself."""
    if name.endswith("~"):
        return _number(name, written[-1:], len(written) % 7 == 0, guided) % 9
    return _number(name, written, guided) % ALONE


def divergence(name: str, position: int) -> float:
    """What guidance changes at a position, in nats: little for a while, then much for a few tokens."""
    return 0.001 * (_number(name, position) % 9) if _number(name, position // 12) % 3 else 0.5


def log_prob(name: str, position: int) -> float:
    """The log-probability of the token at a position."""
    return -(_number(name, position, "log") % 1000) / 7


def oracle(name: str, asked: Request | None, count: int, stops: Set[int]) -> tuple[list[int], RequestState | None]:
    """The plainest loop: at most ``count`` tokens of a request, up to one of ``stops``, and what guidance did."""
    report = None if asked is None else RequestState(asked)
    written: list[int] = []
    for position in range(count):
        guided = report is not None and report.guides(position)
        written.append(word(name, tuple(written), guided))
        if report is not None:
            kl = divergence(name, position) if guided else 0.0
            report.observe(guided, {"kl": kl, "changed": kl > 0.1} if report.measures else None)
        if written[-1] in stops:
            break
    return written, report


@dataclass
class State:
    """One request in the worker.

    Args:
        prompt: its token ids.
        written: what it wrote.
        cache: the token of each position that it has read.
        group: the user's request that it belongs to, None for a plain one.
        place: its place there.
        asked: what is asked for, with the main request.
        measures: whether the scheduler wants to know the divergence.
        first: what the first of several stages knows, which is told by the scheduler.
        seat: of a particle: its population and its number.
        began: tokens at the end of its prompt that it, or another particle, wrote before.
    """

    prompt: list[int]
    written: list[int] = field(default_factory=list)
    cache: list[int] = field(default_factory=list)
    group: str | None = None
    place: int | None = None
    asked: Request | None = None
    measures: bool = False
    first: list[int] = field(default_factory=list)
    seat: tuple[str, int] | None = None
    began: int = 0

    @property
    def particle(self) -> list[int]:
        """The text of a particle."""
        return self.prompt[len(self.prompt) - self.began :] + self.written

    @property
    def text(self) -> list[int]:
        """All that it can read."""
        return self.prompt + self.written


class Worker:
    """What runs the steps.

    Args:
        ahead: whether steps are scheduled before the one before them has come back.
        stages: of the pipeline.
    """

    def __init__(self, ahead: bool, stages: int) -> None:
        self.ahead, self.stages = ahead, stages
        self.states: dict[str, State] = {}
        self.wasted = self.guessed = self.guessed_right = 0
        self.populations: dict[str, dict[int, tuple[list[list[int]], list[bool]]]] = {}  # by position
        self._last: set[str] = set()  # in the batch of the step before

    def run(self, scheduled: Any) -> ModelRunnerOutput:
        """A step, as ``execute_model`` and ``sample_tokens``."""
        counts: Mapping[str, int] = scheduled.num_scheduled_tokens
        guesses: Mapping[str, list[int]] = scheduled.scheduled_spec_decode_tokens
        self._update(scheduled)
        writing = {}
        for name, count in counts.items():
            state = self.states[name]
            start, text = len(state.cache), state.text + list(guesses.get(name, ()))
            assert start + count <= len(text), f"{name} would read what nobody has written"
            state.cache += text[start : start + count]
            if self.stages > 1:
                assert state.first[: len(state.cache)] == state.cache, (
                    f"the first stage reads something else for {name}"
                )
            if len(state.cache) == len(text):
                assert state.cache == text, f"{name} has read another text than it wrote"
                writing[name] = state
        self._last = set(counts)
        order = list(counts)
        first, messages = self._draw(order, writing)
        tokens = {name: [token] for name, token in first.items()}
        self._judge(guesses, tokens, messages)
        starts = [0]
        for name in order:
            starts.append(starts[-1] + len(tokens.get(name, [0])))
        output = ModelRunnerOutput(
            req_ids=order,
            req_id_to_index={name: row for row, name in enumerate(order)},
            sampled_token_ids=[list(tokens.get(name, ())) for name in order],
            logprobs=LogprobsLists(
                np.array([token for name in order for token in tokens.get(name, [0])], dtype=np.int32).reshape(-1, 1),
                np.full((starts[-1], 1), np.nan, dtype=np.float32),
                np.zeros(starts[-1], dtype=np.int32),
                starts if guesses else None,
            ),
        )
        for name, written in tokens.items():
            self.states[name].written += written
        if messages:
            setattr(output, OURS, messages)
        return output

    def _update(self, scheduled: Any) -> None:
        """What vLLM's runner does in ``_update_states``."""
        for name in scheduled.finished_req_ids:
            self.states.pop(name, None)
            self._last.discard(name)
        for new in scheduled.scheduled_new_reqs:
            assert new.req_id not in self.states
            ours = (new.sampling_params.extra_args or {}).get(OURS) or {}
            state = State(list(new.prompt_token_ids), group=ours.get("group"), place=ours.get("place"))
            state.first = list(state.prompt)
            if state.place == MAIN:
                state.asked, state.measures = Request.from_dict(ours["request"]), ours["measures"]
                state.seat, state.began = ours["particle"], ours["n_written"]
            state.cache = state.prompt[: new.num_computed_tokens]
            self.states[new.req_id] = state
        cached = scheduled.scheduled_cached_reqs
        for k, name in enumerate(cached.req_ids):
            state, read, known = self.states[name], cached.num_computed_tokens[k], cached.num_output_tokens[k]
            del state.written[known:]  # what was thrown away
            assert len(state.written) == known, name
            is_resumed = name in cached.resumed_req_ids
            if self.ahead and known and (is_resumed or name not in self._last):  # the scheduler's word is taken for it
                assert cached.all_token_ids[name][-known:] == state.written, name
            if is_resumed:
                state.cache = state.text[:read]
                state.first = state.first[: len(state.text)]
            assert read <= len(state.cache), name
            del state.cache[read:]
            if self.stages > 1:
                told = cached.new_token_ids[k]
                count = read + len(told) - len(state.first)
                if count > 0:
                    state.first += told[-count:]

    def _draw(self, order: list[str], writing: dict[str, State]) -> tuple[dict[str, int], dict[str, Any]]:
        """The token of every request that writes, and what the worker saw."""
        tokens: dict[str, int] = {}
        messages: dict[str, dict[int, dict[str, Any]]] = {}
        for name in order:
            state = self.states[name]
            if state.group is None and name in writing:
                tokens[name] = word(name, tuple(state.written), False)
            if state.asked is None or state.seat is not None:
                continue
            position = len(state.written)
            prompts = state.asked.prompts
            rows = [one for one in order if self.states[one].group == name and self.states[one].place != MAIN]
            beside = [one for one in rows if one in writing]
            guided = len(rows) == len(prompts) and state.asked.acts(position)
            if name in writing:
                tokens[name] = word(name, tuple(state.written), guided)
            # Whether all that stand there are at the same place of the same text.
            right = name in writing and len(beside) == len(rows)
            for branch in (self.states[one] for one in beside):
                right = right and branch.text[len(prompts[branch.place - 1]) :] == state.written
            if name in writing and not right:
                tokens[name] = ALONE
                self.wasted += 1
            tokens |= {one: tokens.get(name, ALONE) for one in beside}
            seen = {
                "kl": divergence(name, position) if guided else 0.0, "changed": False, "broken": False,
                "log_weight": None, "drawn": None, "ids": None,
            }  # fmt: skip
            seen["changed"] = seen["kl"] > 0.1
            if state.asked.draw.logprobs is not None:
                seen |= {"ids": [tokens.get(name, 0)], "logprobs": [log_prob(name, position)], "rank": 1}
            if not right:
                seen |= {"kl": 99.0, "logprobs": [99.0]}
            if seen["ids"] is not None or (state.measures and guided):
                messages[name] = {position: seen}
        self._draw_populations(order, writing, tokens, messages)
        for name in writing:  # branch requests whose main request is not in the step
            tokens.setdefault(name, ALONE)
        return tokens, messages

    def _judge(
        self, guesses: Mapping[str, list[int]], tokens: dict[str, list[int]], messages: dict[str, dict[int, Any]]
    ) -> None:
        """Add what main requests write behind guesses that were right, and of what comes behind them."""
        for name in guesses:
            state = self.states[name]
            if state.asked is None or name not in tokens or tokens[name] == [ALONE]:
                continue
            rows = [one for one in tokens if self.states[one].group == name and self.states[one].place != MAIN]
            assert all(guesses.get(one) == guesses[name] for one in rows), "requests of a group read other guesses"
            position = len(state.written)
            for guess in guesses[name]:
                if tokens[name][-1] != guess:
                    break
                place = position + len(tokens[name])
                assert len(rows) == len(state.asked.prompts) or not rows
                guided = len(rows) == len(state.asked.prompts) and state.asked.acts(place)
                written = (*state.written, *tokens[name])
                for one in (name, *rows):
                    tokens[one].append(word(name, written, guided))
                if position in messages.get(name, {}):
                    kl = divergence(name, place) if guided else 0.0
                    seen = {**messages[name][position], "kl": kl, "changed": kl > 0.1}
                    if seen["ids"] is not None:
                        seen |= {"ids": [tokens[name][-1]], "logprobs": [log_prob(name, place)]}
                    messages[name][place] = seen
            self.guessed += len(guesses[name])
            self.guessed_right += len(tokens[name]) - 1

    def _draw_populations(
        self, order: list[str], writing: dict[str, State], tokens: dict[str, int], messages: dict[str, Any]
    ) -> None:
        """The tokens of particles: of a population all, or none."""
        found: dict[str, dict[int, str]] = {}
        for name in order:
            if self.states[name].seat is not None:
                population, particle = self.states[name].seat
                assert particle not in found.setdefault(population, {})
                found[population][particle] = name
        for population, names in found.items():
            asked = self.states[next(iter(names.values()))].asked
            size, limit = asked.particles, asked.limit
            # A step whose tokens nobody took is drawn again.
            known = self.populations.setdefault(population, {0: ([[] for _ in range(size)], [True] * size)})
            position = len(self.states[next(iter(names.values()))].particle)
            texts, opened = known[position]
            right = sorted(names) == [particle for particle in range(size) if opened[particle]]
            members: dict[int, list[str]] = {}
            for particle, name in names.items():
                rows = [one for one in order if self.states[one].group == name and self.states[one].place != MAIN]
                members[particle] = [name, *rows]
                right = right and all(one in writing for one in members[particle])
                right = right and (len(rows) == len(asked.prompts) or not asked.acts(position))
                if all(one in writing for one in members[particle]):
                    text = self.states[name].particle
                    assert text == texts[particle], "a particle goes on from another text"
                    for branch in (self.states[one] for one in rows):
                        assert branch.text[len(asked.prompts[branch.place - 1]) :] == text
            if not right:
                self.wasted += any(one in writing for own in members.values() for one in own)
                tokens |= {one: ALONE for own in members.values() for one in own if one in writing}
                continue
            made = simulated_populations.turn(population, texts, opened, limit)
            for particle, own in members.items():
                tokens |= dict.fromkeys(own, made["tokens"][particle] or 0)
            seen = {"kl": 0.0, "changed": False, "log_weight": None, "drawn": None, "ids": None}
            messages[population] = {position: {"turn": made, "broken": False, "rows": dict.fromkeys(names, seen)}}
            texts = [
                text if token is None else [*text, token] for text, token in zip(texts, made["tokens"], strict=True)
            ]
            known[position + 1] = [texts[one] for one in made["ancestors"]], made["open"]

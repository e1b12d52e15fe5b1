"""A worker that computes nothing: what it writes depends on what was written before, and on which requests of a group
take part in the step.

Like vLLM's first model runner, it keeps what each request has written and what is in its cache, token by token.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput

from textguide.logits_processors.vllm_plugin.extras import OURS
from textguide.logits_processors.vllm_plugin.request_state import RequestState
from textguide.logits_processors.vllm_plugin.requests import MAIN, Request

from . import simulated_populations

WORDS = 50
ALONE = WORDS - 1  # the token of a request whose group is not complete

Messages = dict[str, dict[int, dict[str, Any]]]


def _number(*parts: Any) -> int:
    """A number that only depends on ``parts``."""
    return zlib.crc32(repr(parts).encode())


def word(name: str, written: tuple[int, ...], guided: bool) -> int:
    """The token after ``written`` of the client's request ``name``; one whose name ends with a tilde repeats itself."""
    if name.endswith("~"):
        return _number(name, written[-1:], len(written) % 7 == 0, guided) % 9
    return _number(name, written, guided) % ALONE


def divergence(name: str, position: int) -> float:
    """What guidance changes at a position, in nats: little for a while, then much for a few tokens."""
    return 0.001 * (_number(name, position) % 9) if _number(name, position // 12) % 3 else 0.5


def log_prob(name: str, position: int) -> float:
    """The log-probability of the token at a position."""
    return -(_number(name, position, "log") % 1000) / 7


def oracle(name: str, request: Request | None, count: int, stops: Set[int]) -> tuple[list[int], RequestState | None]:
    """The plainest loop: at most ``count`` tokens of a request, up to one of ``stops``, and what guidance did."""
    state = None if request is None else RequestState(request)
    written: list[int] = []
    for position in range(count):
        guided = state is not None and state.guides(position)
        written.append(word(name, tuple(written), guided))
        if state is not None:
            kl = divergence(name, position) if guided else 0.0
            state.observe(guided, {"kl": kl, "changed": kl > 0.1} if state.measures else None)
        if written[-1] in stops:
            break
    return written, state


@dataclass
class State:
    """One request in the worker.

    Args:
        prompt: its token ids.
        written: what it wrote.
        cache: the token of each position that it has read.
        group: the group that it belongs to; None for a plain request.
        place: its place there.
        request: the guided request; only main requests have it.
        measures: whether the scheduler wants to know the divergence.
        first_stage: what the first of several stages knows, which the scheduler sends.
        particle: of a particle request: its population and its number.
        n_written: number of tokens at the end of its prompt that belong to its text.
    """

    prompt: list[int]
    written: list[int] = field(default_factory=list)
    cache: list[int] = field(default_factory=list)
    group: str | None = None
    place: int | None = None
    request: Request | None = None
    measures: bool = False
    first_stage: list[int] = field(default_factory=list)
    particle: tuple[str, int] | None = None
    n_written: int = 0

    @property
    def particle_text(self) -> list[int]:
        """The text of a particle."""
        return self.prompt[len(self.prompt) - self.n_written :] + self.written

    @property
    def text(self) -> list[int]:
        """All that it can read."""
        return self.prompt + self.written

    def continues(self, prompt: Sequence[int], written: list[int]) -> bool:
        """Whether its text is ``written`` after ``prompt``."""
        return self.text[len(prompt) :] == written


class Worker:
    """Runs the steps.

    Args:
        ahead: whether steps are scheduled before the one before them has returned.
        stages: of the pipeline.
    """

    def __init__(self, ahead: bool, stages: int) -> None:
        self.ahead = ahead
        self.stages = stages
        self.states: dict[str, State] = {}
        self.wasted = self.guessed = self.guessed_right = 0
        # The texts of populations and which particles are open, by position.
        self.populations: dict[str, dict[int, tuple[list[list[int]], list[bool]]]] = {}
        self._last: set[str] = set()  # requests in the batch of the last step

    def run(self, scheduled: Any) -> ModelRunnerOutput:
        """Run a step, as ``execute_model`` and ``sample_tokens``."""
        counts: Mapping[str, int] = scheduled.num_scheduled_tokens
        guesses: Mapping[str, list[int]] = scheduled.scheduled_spec_decode_tokens
        self._update(scheduled)
        writing = {name for name in counts if self._read(name, counts[name], guesses.get(name, ()))}
        self._last = set(counts)
        order = list(counts)
        first, messages = self._draw(order, writing)
        tokens = {name: [token] for name, token in first.items()}
        self._verify(guesses, tokens, messages)
        output = _output(order, tokens, has_guesses=bool(guesses))
        for name, written in tokens.items():
            self.states[name].written += written
        if messages:
            setattr(output, OURS, messages)
        return output

    # -- what vLLM's runner does in ``_update_states`` -------------------------------------------------------------

    def _update(self, scheduled: Any) -> None:
        for name in scheduled.finished_req_ids:
            self.states.pop(name, None)
            self._last.discard(name)
        for new in scheduled.scheduled_new_reqs:
            assert new.req_id not in self.states
            self.states[new.req_id] = _new_state(new)
        cached = scheduled.scheduled_cached_reqs
        for row, name in enumerate(cached.req_ids):
            self._update_cached(cached, row, name)

    def _update_cached(self, cached: Any, row: int, name: str) -> None:
        state = self.states[name]
        n_read = cached.num_computed_tokens[row]
        n_written = cached.num_output_tokens[row]
        del state.written[n_written:]  # what was discarded
        assert len(state.written) == n_written, name
        is_resumed = name in cached.resumed_req_ids
        if self.ahead and n_written and (is_resumed or name not in self._last):
            # The worker does not know the newest tokens yet, and takes them from the scheduler.
            assert cached.all_token_ids[name][-n_written:] == state.written, name
        if is_resumed:
            state.cache = state.text[:n_read]
            state.first_stage = state.first_stage[: len(state.text)]
        assert n_read <= len(state.cache), name
        del state.cache[n_read:]
        if self.stages > 1:
            new_ids = cached.new_token_ids[row]
            count = n_read + len(new_ids) - len(state.first_stage)
            if count > 0:
                state.first_stage += new_ids[-count:]

    def _read(self, name: str, count: int, guesses: Sequence[int]) -> bool:
        """Let a request read ``count`` tokens; whether it writes one then."""
        state = self.states[name]
        start = len(state.cache)
        text = state.text + list(guesses)
        assert start + count <= len(text), f"{name} would read what nobody has written"
        state.cache += text[start : start + count]
        if self.stages > 1:
            known = state.first_stage[: len(state.cache)]
            assert known == state.cache, f"the first stage reads something else for {name}"
        if len(state.cache) < len(text):
            return False
        assert state.cache == text, f"{name} has read another text than it wrote"
        return True

    # -- what it draws ---------------------------------------------------------------------------------------------

    def _branches(self, name: str, order: Sequence[str]) -> list[str]:
        """The branch requests of a main request that take part in the step."""
        return [one for one in order if self.states[one].group == name and self.states[one].place != MAIN]

    def _draw(self, order: list[str], writing: Set[str]) -> tuple[dict[str, int], Messages]:
        """The token of every request that writes, and the worker's messages."""
        tokens: dict[str, int] = {}
        messages: Messages = {}
        for name in order:
            state = self.states[name]
            if state.group is None and name in writing:
                tokens[name] = word(name, tuple(state.written), False)
            if state.request is not None and state.particle is None:
                self._draw_group(name, self._branches(name, order), writing, tokens, messages)
        self._draw_populations(order, writing, tokens, messages)
        for name in order:
            if name in writing:
                tokens.setdefault(name, ALONE)  # branch requests whose main request is not in the step
        return tokens, messages

    def _draw_group(
        self, name: str, branches: list[str], writing: Set[str], tokens: dict[str, int], messages: Messages
    ) -> None:
        """The tokens of a main request and its branch requests."""
        state = self.states[name]
        assert state.request is not None
        position = len(state.written)
        guided = len(branches) == len(state.request.prompts) and state.request.acts(position)
        writing_branches = [branch for branch in branches if branch in writing]
        is_right = name in writing and len(writing_branches) == len(branches)
        for branch in (self.states[one] for one in writing_branches):
            assert branch.place is not None
            is_right = is_right and branch.continues(state.request.prompts[branch.place - 1], state.written)
        if name in writing:
            tokens[name] = word(name, tuple(state.written), guided) if is_right else ALONE
            self.wasted += not is_right
        tokens.update(dict.fromkeys(writing_branches, tokens.get(name, ALONE)))
        kl = divergence(name, position) if guided else 0.0
        message: dict[str, Any] = {
            "kl": kl,
            "changed": kl > 0.1,
            "broken": False,
            "log_weight": None,
            "drawn": None,
            "ids": None,
        }
        if state.request.draw.logprobs is not None:
            message |= {"ids": [tokens.get(name, 0)], "logprobs": [log_prob(name, position)], "rank": 1}
        if not is_right:
            message |= {"kl": 99.0, "logprobs": [99.0]}
        if message["ids"] is not None or (state.measures and guided):
            messages[name] = {position: message}

    def _verify(self, guesses: Mapping[str, list[int]], tokens: dict[str, list[int]], messages: Messages) -> None:
        """Add what main requests write after guesses that were right, and the messages about these tokens."""
        for name in guesses:
            state = self.states[name]
            if state.request is None or name not in tokens or tokens[name] == [ALONE]:
                continue
            branches = self._branches(name, list(tokens))
            assert all(guesses.get(one) == guesses[name] for one in branches), "requests of a group read other guesses"
            for guess in guesses[name]:
                if tokens[name][-1] != guess:
                    break
                self._write_after_guess(name, branches, tokens, messages)
            self.guessed += len(guesses[name])
            self.guessed_right += len(tokens[name]) - 1

    def _write_after_guess(
        self, name: str, branches: Sequence[str], tokens: dict[str, list[int]], messages: Messages
    ) -> None:
        state = self.states[name]
        assert state.request is not None
        first = len(state.written)
        position = first + len(tokens[name])
        # Of a group of which vLLM preempted a part, nothing is guided; the scheduler discards what it writes.
        guided = len(branches) == len(state.request.prompts) and state.request.acts(position)
        token = word(name, (*state.written, *tokens[name]), guided)
        for one in (name, *branches):
            tokens[one].append(token)
        if first in messages.get(name, {}):
            kl = divergence(name, position) if guided else 0.0
            message = {**messages[name][first], "kl": kl, "changed": kl > 0.1}
            if message["ids"] is not None:
                message |= {"ids": [token], "logprobs": [log_prob(name, position)]}
            messages[name][position] = message

    def _draw_populations(
        self, order: list[str], writing: Set[str], tokens: dict[str, int], messages: Messages
    ) -> None:
        """The tokens of particles: those of a whole population, or none."""
        populations: dict[str, dict[int, str]] = {}
        for name in order:
            particle = self.states[name].particle
            if particle is not None:
                mains = populations.setdefault(particle[0], {})
                assert particle[1] not in mains
                mains[particle[1]] = name
        for population, mains in populations.items():
            members = {particle: [name, *self._branches(name, order)] for particle, name in mains.items()}
            self._draw_population(population, members, writing, tokens, messages)

    def _draw_population(
        self,
        population: str,
        members: Mapping[int, list[str]],
        writing: Set[str],
        tokens: dict[str, int],
        messages: Messages,
    ) -> None:
        """The tokens of one population; ``members`` are the requests of each particle that are in the step."""
        first = self.states[next(iter(members.values()))[0]]
        assert first.request is not None
        size = first.request.particles
        # Kept by position, since a step whose tokens the scheduler discards is drawn again.
        known = self.populations.setdefault(population, {0: ([[] for _ in range(size)], [True] * size)})
        position = len(first.particle_text)
        texts, is_open = known[position]
        is_right = sorted(members) == [particle for particle in range(size) if is_open[particle]]
        for particle, names in members.items():
            is_right = self._is_whole(names, texts[particle], writing) and is_right
        everyone = [name for names in members.values() for name in names]
        if not is_right:
            self.wasted += any(name in writing for name in everyone)
            tokens.update(dict.fromkeys((name for name in everyone if name in writing), ALONE))
            return
        made = simulated_populations.turn(population, texts, is_open, first.request.limit)
        for particle, names in members.items():
            tokens.update(dict.fromkeys(names, made["tokens"][particle] or 0))
        row = {"kl": 0.0, "changed": False, "log_weight": None, "drawn": None, "ids": None}
        messages[population] = {position: {"turn": made, "broken": False, "rows": dict.fromkeys(members, row)}}
        texts = simulated_populations.extended(texts, made["tokens"])
        known[position + 1] = [texts[one] for one in made["ancestors"]], made["open"]

    def _is_whole(self, names: Sequence[str], text: list[int], writing: Set[str]) -> bool:
        """Whether all requests of a particle write, and branch requests are there if they are needed."""
        main, *branches = (self.states[name] for name in names)
        assert main.request is not None
        if not all(name in writing for name in names):
            return False
        assert main.particle_text == text, "a particle continues another text"
        for branch in branches:
            assert branch.place is not None
            assert branch.continues(main.request.prompts[branch.place - 1], text)
        return len(branches) == len(main.request.prompts) or not main.request.acts(len(text))


def _new_state(new: Any) -> State:
    """The state of a request that vLLM schedules for the first time."""
    ours = (new.sampling_params.extra_args or {}).get(OURS) or {}
    state = State(list(new.prompt_token_ids), group=ours.get("group"), place=ours.get("place"))
    state.first_stage = list(state.prompt)
    if state.place == MAIN:
        state.request = Request.from_dict(ours["request"])
        state.measures = ours["measures"]
        state.particle = ours["particle"]
        state.n_written = ours["n_written"]
    state.cache = state.prompt[: new.num_computed_tokens]
    return state


def _output(order: Sequence[str], tokens: Mapping[str, list[int]], has_guesses: bool) -> ModelRunnerOutput:
    """vLLM's output of a step, with log-probabilities that the scheduler has to replace."""
    starts = [0]
    for name in order:
        starts.append(starts[-1] + len(tokens.get(name, [0])))
    ids = [token for name in order for token in tokens.get(name, [0])]
    return ModelRunnerOutput(
        req_ids=list(order),
        req_id_to_index={name: row for row, name in enumerate(order)},
        sampled_token_ids=[list(tokens.get(name, ())) for name in order],
        logprobs=LogprobsLists(
            np.array(ids, dtype=np.int32).reshape(-1, 1),
            np.full((starts[-1], 1), np.nan, dtype=np.float32),
            np.zeros(starts[-1], dtype=np.int32),
            starts if has_guesses else None,
        ),
    )

"""A guided request with one text: its main request, and a branch request for each other prompt of its guidance.

Knows no vLLM: it moves vLLM's requests through :class:`~.engine_requests.EngineRequests`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .groups import Group
from .requests import MAIN
from .step_result import StepResult

if TYPE_CHECKING:
    from .engine_requests import EngineRequests


@dataclass
class BranchGroup(Group):
    """A main request, whose id is the name of the group, and its branch requests.

    Args:
        branches: ids of the branch requests, in the order of their places; empty while there are none.
    """

    branches: tuple[str, ...] = ()

    @property
    def clients(self) -> tuple[str, ...]:
        """The main request."""
        return (self.name,)

    @property
    def internal(self) -> tuple[str, ...]:
        """The branch requests."""
        return self.branches

    @property
    def members(self) -> tuple[str, ...]:
        """Ids of its requests, the main one first."""
        return (self.name, *self.branches)

    @property
    def may_speculate(self) -> bool:
        """Constraints and classifiers see the newest token only, so their texts are not guessed."""
        return self.state.request.awrs is None and not self.state.request.caif

    def arrive(self, request: Any, engine: EngineRequests) -> None:
        """Add the main request, and branch requests if the guidance acts on the first token."""
        request.sampling_params = self.state.parameters(request.sampling_params, self.name, MAIN)
        engine.add_client(self, request)
        if self.state.needs_branches(0):
            self._add_branches(request, engine)

    def must_wait(self, engine: EngineRequests) -> bool:
        """Whether the next step depends on tokens in flight.

        It does at the last token, since vLLM stops a main request there but not its branch requests; when branch
        requests are about to be added, since they read all that was written; and when a part of the group wrote alone.
        """
        in_flight = {request.num_output_placeholders for request in engine.present(self.members)}
        if len(in_flight) > 1:
            return True
        if not any(in_flight):
            return False
        main = engine.get(self.name)
        position = main.num_output_tokens + main.num_output_placeholders
        if position >= min(main.max_tokens, engine.max_model_len - main.num_prompt_tokens):
            return True
        return not self.branches and self.state.needs_branches(position)

    def reconcile(self, step: StepResult, engine: EngineRequests) -> None:
        """Accept the tokens of a step if all of the group wrote the same ones."""
        self.state.branch_tokens += step.tokens_read(self.branches)
        written = step.written(engine.present(self.members))
        main = engine.get(self.name)
        if not written or main is None:
            return
        self.state.preemptions = main.num_preemptions
        position = main.num_output_tokens
        tokens = next(iter(written.values()))
        # Several positions if guesses were right.
        messages = {at: step.messages.get(self.name, {}).get(at) for at in range(position, position + len(tokens))}
        complete = self._is_complete(written, position)
        broken = self._is_broken(messages, complete)
        agreed = all(other == tokens for other in written.values())
        if complete and agreed and not broken:
            self._accept(messages, step, engine)
        else:
            self.discard(written, step, engine, failed=broken or complete)

    def _is_complete(self, written: Mapping[str, list[int]], position: int) -> bool:
        """Whether every request that the token at ``position`` needs wrote one."""
        has_branches = bool(self.branches) or not self.state.needs_branches(position)
        return has_branches and len(written) == len(self.members)

    def _is_broken(self, messages: Mapping[int, Mapping[str, Any] | None], complete: bool) -> bool:
        """Whether the worker reported that a token must not be used, or owes a report about one."""
        for position, message in messages.items():
            if message is None:
                if complete and self.state.needs_message(position):
                    return True
            elif message["broken"]:
                return True
        return False

    def _accept(
        self, messages: Mapping[int, Mapping[str, Any] | None], step: StepResult, engine: EngineRequests
    ) -> None:
        """Keep the tokens at the positions of ``messages``, with what the worker reported about them."""
        n_guesses = step.n_guesses(self.name)
        if n_guesses:
            assert engine.guesser is not None
            n_right = len(messages) - 1
            self.state.guessed += n_guesses
            self.state.guessed_right += n_right
            engine.guesser.judge(self.name, n_right)
        for number, (position, message) in enumerate(messages.items()):
            self.state.observe(self.state.guides(position), message)
            if message is not None and message["ids"] is not None:
                step.replace_logprobs(self.name, message, number)

    def is_over(self, engine: EngineRequests) -> bool:
        """Whether vLLM has ended the main request."""
        main = engine.get(self.name)
        return main is None or main.is_finished()

    def update_members(self, engine: EngineRequests) -> None:
        """Add branch requests when the guidance needs them, and remove them when it does not for a while."""
        if any(engine.get(branch) is None for branch in self.branches):
            self._remove_branches(engine)
        main = engine.get(self.name)
        position = main.num_output_tokens
        if not self.branches and self.state.needs_branches(position) and not main.num_output_placeholders:
            self._add_branches(main, engine)
        elif self.branches and self.state.can_drop_branches(position):
            self._remove_branches(engine)

    def close(self, engine: EngineRequests) -> list[tuple[int, Any]]:
        """Remove the branch requests; vLLM has answered the main request."""
        self._remove_branches(engine)
        return []

    def _add_branches(self, main: Any, engine: EngineRequests) -> None:
        """Add branch requests, which read the prompts of the branches and what was written so far."""
        request = self.state.request
        branches = []
        for place, prompt in enumerate(request.prompts, start=1):
            branches.append(
                engine.continuation(
                    main,
                    request,
                    name=f"{self.name}/branch-{self.n_spawned}-{place}",
                    prompt=prompt,
                    text=main.output_token_ids,
                    params=self.state.parameters(main.sampling_params, self.name, place),
                    place=place,
                )
            )
        self.n_spawned += 1
        self.branches = tuple(branch.request_id for branch in branches)
        engine.add_internal(self, branches)
        if engine.is_running(main):
            # The main request waits for them, so they come before all others.
            engine.move_to_front(branches)

    def _remove_branches(self, engine: EngineRequests) -> None:
        branches = self.branches
        self.branches = ()
        engine.remove_internal(branches)
        engine.incomplete.discard(self.name)

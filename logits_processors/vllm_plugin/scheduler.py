"""Guided requests and their branch requests inside vLLM's scheduler: admitted, scheduled and preempted together.

Opt in by class path: ``--scheduler-cls textguide.logits_processors.vllm_plugin.scheduler.GuidedScheduler``. Requests
come and go in ``grouped.py``; ``settled.py`` runs before a step, ``admitted.py`` while vLLM schedules it, and this file
after it.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.request import RequestStatus

from .channel import messages_of
from .drafted import Drafted
from .extras import OURS
from .groups import Group
from .population import Population
from .request_state import Report, with_guided


class GuidedScheduler(Drafted):
    """vLLM's scheduler with branch requests beside every guided request.

    Plain requests are scheduled as vLLM schedules them. A group of n requests holds n of the engine's ``max_num_seqs``
    places and the cache of n sequences. Refuses at start what it was not tested with (``refusals.py``). Where the
    engine schedules a step ahead, an object of this class is a :class:`GuidedAsyncScheduler`.
    """

    def __new__(cls, vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
        """The one for the engine's way of scheduling; arguments are vLLM's."""
        is_ahead = cls is GuidedScheduler and vllm_config.scheduler_config.async_scheduling
        return super().__new__(GuidedAsyncScheduler if is_ahead else cls)

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Take in the tokens of a step: all requests of a group wrote the same one, or none wrote."""
        if not self.groups:
            return super().update_from_output(scheduler_output, model_runner_output)
        seen = messages_of(model_runner_output)
        for group in self.groups:
            told = seen.get(group.main, {})
            if isinstance(group, Population):
                self._reconcile_population(group, scheduler_output, model_runner_output, told)
            else:
                self._reconcile(group, scheduler_output, model_runner_output, told)
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        for batch in outputs.values():
            batch.outputs = [one for one in batch.outputs if not self.groups.is_branch(one.request_id)]
            for one in batch.outputs:
                ours = self.groups.by_main.get(one.request_id)
                # The front end looks for texts that end a request, and every token may be the last.
                may_end = ours is not None and (one.finish_reason is not None or ours.state.stops)
                if ours is not None and may_end and one.kv_transfer_params is None:
                    one.kv_transfer_params = {OURS: ours.state.summary()}
        for group in self.groups:
            if isinstance(group, Population):
                self._follow_population(group, outputs)
            else:
                self._follow(group)
        return outputs

    def _reconcile(self, group: Group, scheduled: Any, output: Any, messages: dict[int, dict[str, Any]]) -> None:
        """Throw away what a part of a group wrote alone, and put the guided log-probabilities in place.

        Args:
            messages: what the worker saw of the group at this step, by position.
        """
        state: Report = group.state
        counts, tokens = scheduled.num_scheduled_tokens, self._sampled(group.members, scheduled, output)
        state.branch_tokens += sum(counts.get(name, 0) for name in group.branches)
        wrote = [name for name, written in tokens.items() if written]
        main = self.requests.get(group.main)
        if not wrote or main is None:
            return
        state.preemptions = main.num_preemptions
        position = main.num_output_tokens
        together = len(wrote) == len(group.members) and (bool(group.branches) or not state.wants_branches(position))
        places = range(position, position + len(tokens[wrote[0]]))  # several where guesses were right
        told = [messages.get(place) for place in places]
        broken = any(
            seen["broken"] if seen is not None else state.awaits(place) and together
            for place, seen in zip(places, told, strict=True)
        )
        if broken or not together or any(tokens[name] != tokens[wrote[0]] for name in wrote):
            if broken or together:  # never a wrong answer
                self._fail(group.main)
            state.discarded += 1
            for name in wrote:
                tokens[name].clear()
            guesses = scheduled.scheduled_spec_decode_tokens
            self._take_back([self.requests[name] for name in wrote], counts, guesses)
            return
        guessed = scheduled.scheduled_spec_decode_tokens.get(group.main)
        if guessed:
            state.guessed += len(guessed)
            state.guessed_right += len(places) - 1
            self._judge(group.main, len(places) - 1)
        row = output.req_id_to_index[group.main]
        for number, (place, seen) in enumerate(zip(places, told, strict=True)):
            state.observe(place, state.guides(place), seen)
            if seen is not None and seen["ids"] is not None and output.logprobs is not None:
                output.logprobs = with_guided(output.logprobs, row, seen, number)

    def _follow(self, group: Group) -> None:
        """What became of a group: its branch requests end with it, are dropped for a while, or are made again."""
        main = self.requests.get(group.main)
        if main is None or main.is_finished():
            self._dismiss(group)
            self._drop(group)
            return
        if any(branch not in self.requests for branch in group.branches):
            self._dismiss(group)
        position = main.num_output_tokens
        if not group.branches and group.state.wants_branches(position) and not main.num_output_placeholders:
            self._spawn(group, main)
        elif group.branches and group.state.idles(position):
            self._dismiss(group)

    def make_stats(self, *args: Any, **kwargs: Any) -> Any:
        """vLLM's figures, in which branch requests do not count as requests, and ours."""
        stats = super().make_stats(*args, **kwargs)
        if stats is None:
            return None
        live = [self._members(group) for group in self.groups if group.main in self.requests]
        moving = sum(all(one.status == RequestStatus.RUNNING for one in members) for members in live)
        states = [group.state for group in self.groups]
        stats.num_kv_fetch_reqs_by_stage |= self.totals.news(states, moving, len(live) - moving)
        branches = [self.requests[name] for name in self.groups.by_branch if name in self.requests]
        running = sum(branch.status == RequestStatus.RUNNING for branch in branches)
        deferred = sum(branch in self.deferred_waiting for branch in branches)
        stats.num_running_reqs -= running
        stats.num_waiting_reqs -= len(branches) - running - deferred
        stats.num_skipped_waiting_reqs -= deferred
        return stats


class GuidedAsyncScheduler(GuidedScheduler, AsyncScheduler):
    """Schedules a step while the one before it is in flight, whose tokens are not known yet.

    A group goes on as long as nothing in flight can change what it needs; there, it waits for it.
    """

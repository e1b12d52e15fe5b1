"""What the worker returned for one step of the engine. Knows no vLLM but the names of what it reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .channel import Messages, messages_of

Logprob = tuple[list[int], list[float], int]
"""Token ids with their log-probabilities, the token that was drawn first, and its rank."""


class StepResult:
    """The tokens of a step and the worker's messages about guided requests.

    Args:
        scheduled: vLLM's ``SchedulerOutput`` of the step.
        output: vLLM's ``ModelRunnerOutput``; it is changed in place.
    """

    def __init__(self, scheduled: Any, output: Any) -> None:
        self.scheduled = scheduled
        self.output = output
        self.messages: Messages = messages_of(output)

    def tokens_scheduled(self, request: str) -> int:
        """Number of tokens that a request of the step was scheduled with."""
        return int(self.scheduled.num_scheduled_tokens[request])

    def tokens_read(self, requests: Iterable[str]) -> int:
        """Number of tokens that requests read in the step, in total."""
        counts = self.scheduled.num_scheduled_tokens
        return sum(counts.get(request, 0) for request in requests)

    def n_guesses(self, request: str) -> int:
        """Number of guesses that a request read in the step."""
        return len(self.scheduled.scheduled_spec_decode_tokens.get(request, ()))

    def written(self, requests: Iterable[Any]) -> dict[str, list[int]]:
        """The tokens of those requests that wrote some, by id.

        The lists are the engine's own: clearing one discards its tokens.
        """
        sampled = self.output.sampled_token_ids
        written: dict[str, list[int]] = {}
        if not sampled:
            return written
        for request in requests:
            name = request.request_id
            # Stale tokens are those of a request that was preempted in the meantime; vLLM drops them.
            if name in self.scheduled.num_scheduled_tokens and not request.num_stale_output_tokens:
                tokens = sampled[self.output.req_id_to_index[name]]
                if tokens:
                    written[name] = tokens
        return written

    def replace_logprobs(self, request: str, message: Mapping[str, Any], number: int) -> None:
        """Write the log-probabilities of the guided distribution over vLLM's, which are those of the main request.

        Args:
            message: the worker's message about the token; its ``ids`` are set.
            number: which of the tokens that the request wrote in this step it is.
        """
        if self.output.logprobs is not None:
            row = self.output.req_id_to_index[request]
            self.output.logprobs = with_guided(self.output.logprobs, row, message, number)


def with_guided(logprobs: Any, row: int, message: Mapping[str, Any], number: int = 0) -> Any:
    """Log-probabilities of a step, with those of the guided distribution for one token.

    Args:
        logprobs: vLLM's ``LogprobsLists``; it is not changed.
        row: of the request.
        message: the worker's message about the token.
        number: which of the tokens that the request wrote in this step it is.
    """
    starts = getattr(logprobs, "cu_num_generated_tokens", None)
    row = (row if starts is None else starts[row]) + number
    count = len(message["ids"])
    ids, values, ranks = (array.copy() for array in logprobs[:3])
    ids[row, :count] = message["ids"]
    values[row, :count] = message["logprobs"]
    ranks[row] = message["rank"]
    return logprobs._replace(logprob_token_ids=ids, logprobs=values, sampled_token_ranks=ranks)

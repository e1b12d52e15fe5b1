"""What the scheduler knows about one guided request: when it needs branch requests, and what guidance did so far.

Knows no vLLM but the names of its sampling parameters.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from textguide.smc.constrained import STOPPED

from .extras import OURS
from .requests import MAIN, Request

SHORTEST_REST = 8
"""Branch requests are kept if they are needed within this many tokens: one that is added again reads all that was
written since, in a step of its own."""


@dataclass
class RequestState:
    """State of one guided request.

    Args:
        request: the guided request.
        branch_tokens: tokens that branch requests have read.
        guided: tokens drawn from a distribution that guidance changed, by its branches or a classifier.
        branched: of these, the ones that combined branches.
        unguided: tokens drawn without guidance: outside its window, or at γ(s) = 1.
        discarded: tokens that a part of the group wrote alone, and that were discarded.
        preemptions: how often the group was sent back to the queue.
        kl_sum: sum of KL(guided‖unguided) over guided tokens, in nats.
        kl_max: the largest of these.
        changed: guided tokens for which guidance changed the most likely token.
        log_weight: of the text so far, under its constraint or by the normalisers of its guidance.
        constraint_calls: how often the constraint was evaluated.
        ended: whether the text is complete.
        death: why the text was given up; None if it was not.
        stops: whether a text may end the request, which the front end finds out.
        guessed: tokens that were guessed, and read before they were written.
        guessed_right: of these, the ones that were written.
    """

    request: Request
    branch_tokens: int = 0
    guided: int = 0
    branched: int = 0
    unguided: int = 0
    discarded: int = 0
    preemptions: int = 0
    kl_sum: float = 0.0
    kl_max: float = 0.0
    changed: int = 0
    log_weight: float = 0.0
    constraint_calls: int = 0
    ended: bool = False
    death: str | None = None
    stops: bool = False
    guessed: int = 0
    guessed_right: int = 0

    @property
    def measures(self) -> bool:
        """Whether the worker has to report the KL of every step."""
        return self.request.effect

    def guides(self, position: int) -> bool:
        """Whether the token at ``position`` is drawn from the combination of the branches."""
        return self.request.acts(position)

    def needs_message(self, position: int) -> bool:
        """Whether the worker has to send a message about the token at ``position``, which is not used without it."""
        request = self.request
        if request.draw.logprobs is not None or request.awrs is not None or request.population is not None:
            return True
        return self.measures and self.guides(position)

    def needs_branches(self, position: int) -> bool:
        """Whether the main request needs its branch requests to write the token at ``position``."""
        return bool(self.request.prompts) and self.guides(position)

    def can_drop_branches(self, position: int) -> bool:
        """Whether branch requests are not needed for a while, from ``position`` on."""
        return not any(map(self.request.acts, range(position, position + SHORTEST_REST)))

    def observe(self, guided: bool, message: Mapping[str, Any] | None) -> None:
        """Record what happened at a position.

        Args:
            guided: whether branches were combined.
            message: the fields of the worker's report; None if there is none.
        """
        if message is not None:
            self._record_weights(message)
        self.branched += guided
        if not guided and not self.request.caif:
            self.unguided += 1
            return
        self.guided += 1
        if message is None:
            return
        kl = float(message["kl"])
        self.kl_sum += kl
        self.kl_max = max(self.kl_max, kl)
        self.changed += bool(message["changed"])

    def _record_weights(self, message: Mapping[str, Any]) -> None:
        drawn = message.get("drawn")
        if drawn is not None:
            self.log_weight += drawn["log_weight"] or 0.0
            self.constraint_calls += drawn["calls"]
            self.ended = drawn["ended"]
            self.death = drawn["death"]
        self.log_weight += message.get("log_weight") or 0.0

    def summary(self) -> dict[str, Any]:
        """The report that the client receives at the end, as plain values."""
        values: dict[str, Any] = {
            "guided": True,
            "guided_steps": self.guided,
            "branched_steps": self.branched,
            "unguided_steps": self.unguided,
            "discarded_steps": self.discarded,
            "preemptions": self.preemptions,
            "branch_tokens": self.branch_tokens,
        }
        if self.guessed:
            values |= {"draft_tokens": self.guessed, "accepted_draft_tokens": self.guessed_right}
        if self.measures and self.guided:
            values |= {
                "mean_kl": self.kl_sum / self.guided,
                "max_kl": self.kl_max,
                "top_changed": self.changed / self.guided,
            }
        if self.request.weighs and self.request.population is None:
            values["log_weight"] = self.log_weight
        if self.request.awrs is not None:
            values |= {
                "log_weight": self.log_weight if self.ended else None,
                "death": self.death if self.ended or self.death is not None else STOPPED,
                "constraint_calls": self.constraint_calls,
            }
        return {name: _finite(value) for name, value in values.items()}

    def parameters(
        self, params: Any, group: str, place: int, particle: tuple[str, int] | None = None, n_written: int = 0
    ) -> Any:
        """Sampling parameters of one request of the group, which name the group.

        They are greedy, since the processor draws the token and vLLM's sampler then takes the only one that is left.

        Args:
            params: the client's.
            group: id under which the requests of the text belong together.
            place: ``MAIN``, or the number of the branch request.
            particle: the population and the number of the particle, for a particle request.
            n_written: number of tokens at the end of the request's prompt that belong to its text.
        """
        params = copy.copy(params)
        params.temperature = 0.0
        params.top_p = 1.0
        params.top_k = 0
        params.min_p = 0.0
        params.seed = None
        params.repetition_penalty = 1.0
        params.presence_penalty = 0.0
        params.frequency_penalty = 0.0
        # A cached_property of vLLM, which may hold the kind of sampling of the client's parameters.
        getattr(params, "__dict__", {}).pop("sampling_type", None)
        ours: dict[str, Any] = {"group": group, "place": place}
        if place == MAIN:
            ours |= {
                "measures": self.measures,
                "request": self.request.to_dict(),
                "particle": particle,
                "n_written": n_written,
                "ends": sorted({params.eos_token_id, *(params.stop_token_ids or ())} - {None}),
            }
        params.extra_args = {**(params.extra_args or {}), OURS: ours}
        if place != MAIN or particle is not None:
            self._never_stop(params)
        return params

    def _never_stop(self, params: Any) -> None:
        """Leave where the text ends to the scheduler, and its log-probabilities to the processor."""
        params.structured_outputs = None
        params.logprobs = None
        params.repetition_detection = None
        params.min_tokens = 0
        params.stop_token_ids = None
        params._eos_token_id = None
        params._all_stop_token_ids = set()


def _finite(value: Any) -> Any:
    """JSON has no infinite numbers: None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value

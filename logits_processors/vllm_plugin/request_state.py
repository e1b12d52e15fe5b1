"""One guided request as the scheduler follows it: when it needs its branch requests, and what guidance did.

Knows no vLLM.
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

PATIENCE = 4
"""Tokens in a row that guidance has to leave nearly as they are before some are skipped."""
# Skips begin at multiples of this many tokens, and are that long at first: a branch request that is made again reads
# all that was written since, in a step of its own.
FIRST_SKIP = 8
LONGEST_SKIP = 64


@dataclass
class Report:
    """State of one guided request.

    Args:
        request: what is asked for.
        branch_tokens: tokens that branch requests have read.
        guided: tokens drawn from a distribution that guidance changed, by its branches or a classifier.
        branched: of these, the ones that combined branches.
        unguided: tokens drawn without: outside the window, at γ(s) = 1, or skipped.
        skipped: tokens that ``skip_threshold`` left without branch requests.
        discarded: tokens that a part of the group wrote alone, and that were thrown away.
        preemptions: how often the group was sent back to the queue.
        kl_sum, kl_max: of KL(guided‖unguided) over guided tokens, in nats.
        changed: guided tokens whose most likely value was another one without guidance.
        log_weight: of the text so far, under its constraint or by the normalisers of its guidance.
        constraint_calls: questions to the constraint.
        ended: whether the text is complete.
        death: why nothing more may be written; None where something may.
        calm: guided tokens in a row that stayed within ``skip_threshold``.
        skip: how many tokens are skipped next.
        resume_at: position at which the present skip ends.
        stops: whether a text may end the request, which the front end finds out.
        guessed: tokens that were guessed, and read before they were written.
        guessed_right: of these, the ones that were written.
    """

    request: Request
    branch_tokens: int = 0
    guided: int = 0
    branched: int = 0
    unguided: int = 0
    skipped: int = 0
    discarded: int = 0
    preemptions: int = 0
    kl_sum: float = 0.0
    kl_max: float = 0.0
    changed: int = 0
    log_weight: float = 0.0
    constraint_calls: int = 0
    ended: bool = False
    death: str | None = None
    calm: int = 0
    skip: int = FIRST_SKIP
    resume_at: int | None = None
    stops: bool = False
    guessed: int = 0
    guessed_right: int = 0

    @property
    def measures(self) -> bool:
        """Whether the worker has to report the KL of every step."""
        return self.request.effect or self._threshold is not None

    def guides(self, position: int) -> bool:
        """Whether the token at ``position`` is drawn from what the branches make together."""
        return self.request.acts(position) and not self.skips(position)

    def awaits(self, position: int) -> bool:
        """Whether the worker has something to say of the token at ``position``, without which it must not be used."""
        request = self.request
        asked = request.draw.logprobs is not None or request.awrs is not None or request.population is not None
        return asked or (self.measures and self.guides(position))

    def wants_branches(self, position: int) -> bool:
        """Whether branch requests have to stand beside the main request when it writes the token at ``position``."""
        return bool(self.request.prompts) and self.guides(position)

    def idles(self, position: int) -> bool:
        """Whether branch requests are of no use for a while, from ``position`` on."""
        return self.skips(position) or not any(map(self.request.acts, range(position, position + FIRST_SKIP)))

    def decides(self, position: int) -> bool:
        """Whether the token at ``position`` may be the first that is skipped, by what was seen before it."""
        return self._threshold is not None and position % FIRST_SKIP == 0

    def skips(self, position: int) -> bool:
        """Whether ``skip_threshold`` leaves the token at ``position`` unguided."""
        return self.resume_at is not None and position < self.resume_at

    def observe(self, position: int, guided: bool, seen: Mapping[str, Any] | None) -> None:
        """Learn what happened at ``position``: tokens are skipped where guidance has changed little for a while."""
        drawn = (seen or {}).get("drawn")
        if drawn is not None:
            self.log_weight += drawn["log_weight"] or 0.0
            self.constraint_calls += drawn["calls"]
            self.ended, self.death = drawn["ended"], drawn["death"]
        self.log_weight += (seen or {}).get("log_weight") or 0.0
        self.skipped += self.skips(position)
        self.branched += guided
        if not guided and not self.request.caif:
            self.unguided += 1
            return
        self.guided += 1
        if seen is None:
            return
        kl = float(seen["kl"])
        self.kl_sum += kl
        self.kl_max = max(self.kl_max, kl)
        self.changed += bool(seen["changed"])
        threshold = self._threshold
        if threshold is None or not guided:
            return
        if kl > threshold:
            self.calm, self.skip = 0, FIRST_SKIP
        elif self.resume_at is not None:  # just resumed, and the skip did no harm
            self.calm, self.skip = PATIENCE, min(2 * self.skip, LONGEST_SKIP)
        else:
            self.calm += 1
        self.resume_at = None
        if self.calm >= PATIENCE and self.decides(position + 1):
            self.resume_at = position + self.skip

    def summary(self) -> dict[str, Any]:
        """What is reported to the client at the end, as plain values."""
        values: dict[str, Any] = {
            "guided_steps": self.guided,
            "branched_steps": self.branched,
            "unguided_steps": self.unguided,
            "skipped_steps": self.skipped,
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
        self, params: Any, group: str, place: int, seat: tuple[str, int] | None = None, began: int = 0
    ) -> Any:
        """Sampling parameters for the engine: greedy, since the processor draws; the group is named in them.

        Args:
            params: the user's.
            group: the name.
            place: in the group.
            seat: of a particle: its population and its number.
            began: tokens at the end of the request's prompt that are its text.
        """
        params = copy.copy(params)
        params.temperature, params.top_p, params.top_k, params.min_p, params.seed = 0.0, 1.0, 0, 0.0, None
        params.repetition_penalty, params.presence_penalty, params.frequency_penalty = 1.0, 0.0, 0.0
        # cached_property of vLLM, read before
        getattr(params, "__dict__", {}).pop("sampling_type", None)
        ours: dict[str, Any] = {"group": group, "place": place}
        if place == MAIN:
            ours |= {"measures": self.measures, "request": self.request.to_dict(), "seat": seat, "began": began}
            ours["ends"] = sorted({params.eos_token_id, *(params.stop_token_ids or ())} - {None})
        params.extra_args = {**(params.extra_args or {}), OURS: ours}
        if place != MAIN or seat is not None:  # what ends a particle is seen where it is drawn
            params.structured_outputs, params.logprobs, params.repetition_detection = None, None, None
            params.min_tokens = 0
            params.stop_token_ids, params._eos_token_id, params._all_stop_token_ids = None, None, set()
        return params

    @property
    def _threshold(self) -> float | None:
        guidance = self.request.guidance
        return None if guidance is None or not self.request.prompts else guidance.skip_threshold


def with_guided(logprobs: Any, row: int, seen: Mapping[str, Any], number: int = 0) -> Any:
    """vLLM's log-probabilities of a step with those of the guided distribution in one row, at its ``number``-th
    token."""
    starts = getattr(logprobs, "cu_num_generated_tokens", None)
    row = (row if starts is None else starts[row]) + number
    count = len(seen["ids"])
    ids, values, ranks = (array.copy() for array in logprobs[:3])
    ids[row, :count], values[row, :count], ranks[row] = seen["ids"], seen["logprobs"], seen["rank"]
    return logprobs._replace(logprob_token_ids=ids, logprobs=values, sampled_token_ranks=ranks)


def _finite(value: Any) -> Any:
    """JSON has no infinite numbers: null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""One guided request as the scheduler follows it: when it needs its branch request, and what guidance did.

Knows no vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from textguide.guidance import Step
from textguide.smc.constrained import STOPPED

from .requests import Request

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
        negative: token ids of the prompt that the branch request reads.
        branch_tokens: tokens that branch requests have read.
        guided: tokens drawn from a distribution that guidance changed, by a branch request or a classifier.
        paired: of these, the ones that had a branch request.
        unguided: tokens drawn without: outside the window, at γ(s) = 1, or skipped.
        skipped: tokens that ``skip_threshold`` left without a branch request.
        discarded: tokens that one half wrote alone, and that were thrown away.
        preemptions: how often the pair was sent back to the queue.
        kl_sum, kl_max: of KL(guided‖unguided) over guided tokens, in nats.
        changed: guided tokens whose most likely value was another one without guidance.
        log_weight: of the text under its constraint, so far.
        constraint_calls: questions to the constraint.
        ended: whether the text is complete.
        death: why nothing more may be written; None where something may.
        calm: guided tokens in a row that stayed within ``skip_threshold``.
        skip: how many tokens are skipped next.
        resume_at: position at which the present skip ends.
    """

    request: Request
    negative: list[int]
    branch_tokens: int = 0
    guided: int = 0
    paired: int = 0
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

    @property
    def measures(self) -> bool:
        """Whether the worker has to report the KL of every step."""
        return self.request.effect or self.request.guidance.skip_threshold is not None

    def wants_branch(self, position: int) -> bool:
        """Whether the token at ``position`` is to be guided."""
        return self._active(position) and not self.skips(position)

    def idles(self, position: int) -> bool:
        """Whether a branch request is of no use for a while, from ``position`` on."""
        return self.skips(position) or not any(map(self._active, range(position, position + FIRST_SKIP)))

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
        self.skipped += self.skips(position)
        self.paired += guided
        if not guided and self.request.caif is None:
            self.unguided += 1
            return
        self.guided += 1
        if seen is None:
            return
        kl = float(seen["kl"])
        self.kl_sum += kl
        self.kl_max = max(self.kl_max, kl)
        self.changed += bool(seen["changed"])
        threshold = self.request.guidance.skip_threshold
        if threshold is None or not guided:
            return
        if kl > threshold:
            self.calm, self.skip = 0, FIRST_SKIP
        elif self.resume_at is not None:  # just resumed, and the skip did no harm
            self.calm, self.skip = PATIENCE, min(2 * self.skip, LONGEST_SKIP)
        else:
            self.calm += 1
        self.resume_at = None
        if self.calm >= PATIENCE and (position + 1) % FIRST_SKIP == 0:
            self.resume_at = position + self.skip

    def summary(self) -> dict[str, Any]:
        """What is reported to the client at the end, as plain values."""
        values: dict[str, Any] = {
            "guided_steps": self.guided,
            "paired_steps": self.paired,
            "unguided_steps": self.unguided,
            "skipped_steps": self.skipped,
            "discarded_steps": self.discarded,
            "preemptions": self.preemptions,
            "branch_tokens": self.branch_tokens,
        }
        if self.measures and self.guided:
            values |= {
                "mean_kl": self.kl_sum / self.guided,
                "max_kl": self.kl_max,
                "top_changed": self.changed / self.guided,
            }
        if self.request.awrs is not None:
            values |= {
                "log_weight": self.log_weight if self.ended else None,
                "death": self.death if self.ended or self.death is not None else STOPPED,
                "constraint_calls": self.constraint_calls,
            }
        return values

    def _active(self, position: int) -> bool:
        return self.request.guidance.active(Step.at(position, self.request.horizon))

"""Which requests of a vLLM engine belong together. Knows no vLLM.

A guided request becomes a *group* of requests that write their tokens in the same steps. There are two kinds:
a :class:`~.branch_group.BranchGroup` writes one text, and a :class:`~.population.Population` writes several texts that
are resampled together. The scheduler keeps them in :class:`Groups`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .request_state import RequestState
from .step_result import StepResult

Engine = Any
"""An :class:`~.engine_requests.EngineRequests`, which knows groups and cannot be imported here."""

NO_DISTRIBUTION = "the guidance did not return a distribution, or the requests of its group drew different tokens"
"""Why a group is ended with an error instead of a wrong answer."""


@dataclass
class Group(ABC):
    """The requests of one guided request, as the scheduler sees them.

    Args:
        name: id of the group; the worker's messages about it carry this id.
        state: what the scheduler knows about the guided request.
        n_spawned: number of times that requests were added for it; it keeps their ids unique.
    """

    name: str
    state: RequestState
    n_spawned: int = 0

    @property
    @abstractmethod
    def clients(self) -> tuple[str, ...]:
        """Ids of the requests that a client sent and that have arrived."""

    @property
    @abstractmethod
    def internal(self) -> tuple[str, ...]:
        """Ids of the requests that the scheduler added."""

    @property
    @abstractmethod
    def members(self) -> tuple[str, ...]:
        """Ids of the requests that run; a main request comes before its branch requests."""

    @property
    @abstractmethod
    def may_speculate(self) -> bool:
        """Whether tokens of the group may be guessed."""

    @abstractmethod
    def arrive(self, request: Any, engine: Engine) -> None:
        """Add a client's request to the engine, and the requests that it needs from the start."""

    @abstractmethod
    def must_wait(self, engine: Engine) -> bool:
        """Whether the group has to see what the steps in flight write before it may be scheduled again."""

    @abstractmethod
    def reconcile(self, step: StepResult, engine: Engine) -> None:
        """Accept the tokens that the group wrote in a step, or discard all of them."""

    @abstractmethod
    def is_over(self, engine: Engine) -> bool:
        """Whether its last token was written."""

    @abstractmethod
    def update_members(self, engine: Engine) -> None:
        """Add and remove requests, depending on what the next token needs."""

    @abstractmethod
    def close(self, engine: Engine) -> list[tuple[int, Any]]:
        """Remove its requests; the answers that vLLM does not make itself, each with the index of its client."""

    def discard(self, written: Mapping[str, list[int]], step: StepResult, engine: Engine, failed: bool) -> None:
        """Discard what requests wrote in a step, so that they write it again.

        Args:
            written: the engine's own lists of tokens, by request.
            failed: whether the group ends with an error, since writing it again would not help.
        """
        if failed:
            for client in self.clients:
                engine.fail(client, NO_DISTRIBUTION, code="guidance_error")
        self.state.discarded += 1
        for tokens in written.values():
            tokens.clear()
        engine.take_back(list(written), step)


@dataclass
class Groups:
    """All groups of an engine, by their names and by the ids of their requests."""

    by_name: dict[str, Group] = field(default_factory=dict)
    by_client: dict[str, Group] = field(default_factory=dict)
    by_internal: dict[str, Group] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.by_name)

    def __iter__(self) -> Iterator[Group]:
        # A copy, since groups end while the scheduler iterates.
        return iter(list(self.by_name.values()))

    def of(self, request: str) -> Group | None:
        """The group that ``request`` belongs to."""
        return self.by_client.get(request) or self.by_internal.get(request)

    def is_internal(self, request: str) -> bool:
        """Whether the scheduler added ``request``."""
        return request in self.by_internal

    def add(self, group: Group) -> None:
        """Add a group; its requests are added on their own."""
        self.by_name[group.name] = group

    def add_client(self, group: Group, request: str) -> None:
        """Note that a client's request belongs to ``group``."""
        self.by_client[request] = group

    def add_internal(self, group: Group, requests: Iterable[str]) -> None:
        """Note that requests of the scheduler belong to ``group``."""
        self.by_internal.update(dict.fromkeys(requests, group))

    def remove_internal(self, requests: Iterable[str]) -> None:
        """Forget requests that the scheduler removed."""
        for request in requests:
            del self.by_internal[request]

    def remove(self, group: Group) -> None:
        """Forget a group and all of its requests."""
        del self.by_name[group.name]
        for request in group.clients:
            del self.by_client[request]
        self.remove_internal(group.internal)

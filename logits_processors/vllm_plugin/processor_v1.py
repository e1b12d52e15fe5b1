"""The guided distribution inside vLLM's first model runner. Knows no vLLM but the shape of what it hands over."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .batch_rows import Member, Rows, Standing
from .channel import Outbox
from .combination import Drawing, guide, messages
from .constraints import EngineConstraints
from .extras import OURS, constraints_of, critics_of
from .further_models import logits_of
from .particles import KEPT, Populations, Seat
from .requests import MAIN, Request
from .reweighting import Reweighting, classifier_of


class FirstRunnerProcessor:
    """Combines the rows of guided requests with those of their branch requests; other rows keep their bits.

    Args:
        vllm_config: names the engine.
        device: of the logits.
        is_pin_memory: not used.
    """

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        self.rows: Rows[Drawing | None] = Rows()
        self.outbox = Outbox()
        self.aids = Aids.of(vllm_config)
        self.models = logits_of(vllm_config)
        self.judged: Set[int] = frozenset()  # rows whose tokens were taken in this step already

    def is_argmax_invariant(self) -> bool:
        """It is not: guidance changes the most likely token."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follow what was removed, added and moved, in this order."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self.rows.remove(row)
        for row, params, prompt, written in batch_update.added:
            self.rows.add(row, self._member(params, prompt, written))
        for source, target, direction in batch_update.moved:
            self.rows.move(source, target, direction.name == "SWAP")

    def apply(self, logits: Tensor) -> Tensor:
        """Guided distributions in the rows of groups, in place."""
        if not self.rows.members:
            return logits
        groups = [group for group in self.rows.groups() if group.row not in self.judged]
        positions = [len(group.member.payload.written()) for group in groups]
        seen = guide(logits, groups, positions, self.models)
        self.outbox.put(messages(groups, positions, seen))
        return logits

    def judge(
        self,
        logits: Tensor,
        starts: Sequence[int],
        guesses: Sequence[Sequence[int]],
        greedy: Callable[[Tensor], Tensor],
    ) -> dict[int, list[int]]:
        """The tokens of the groups that have guesses: those that were guessed right, and the one behind them.

        Args:
            logits: of the newest token and the guesses of each request, (T, V); changed in place.
            starts: where those of each request begin.
            guesses: of each request.
            greedy: the most likely tokens, (R, V) → (R,).

        Returns:
            Tokens by the row of the request, those of branch requests too.
        """
        going = [group for group in self.rows.groups() if guesses[group.row]]
        taken: dict[int, list[int]] = {row: [] for group in going for row in (group.row, *group.branches)}
        drawings = {group.row: group.member.payload for group in going}
        before = {row: drawing.written for row, drawing in drawings.items()}
        for row, drawing in drawings.items():
            drawing.written = _with(before[row], taken[row])
        depth = 0
        while going:
            here = [
                Standing(starts[group.row] + depth, tuple(starts[row] + depth for row in group.branches), group.member)
                for group in going
            ]
            positions = [len(group.member.payload.written()) for group in going]
            seen = guide(logits, here, positions)
            self.outbox.put(messages(here, positions, seen))
            tokens = greedy(logits[[one.row for one in here]]).tolist()
            later = []
            for group, token in zip(going, tokens, strict=True):
                rows = (group.row, *group.branches)
                for row in rows:
                    taken[row].append(token)
                guessed = all(guesses[row][depth : depth + 1] == [token] for row in rows)
                if guessed and token not in drawings[group.row].ends:
                    later.append(group)
            going, depth = later, depth + 1
        for row, drawing in drawings.items():
            drawing.written = before[row]
        return taken

    def _member(self, params: Any, prompt: list[int] | None, written: list[int]) -> Member[Drawing | None] | None:
        # The list is vLLM's own and grows with the text.
        return member_of(params, lambda: list(prompt or ()), lambda: written, self.aids)


@dataclass(frozen=True)
class Aids:
    """What reweights, or rules out, the tokens of one engine's requests.

    Args:
        reweighting: of an engine that was started with a classifier; None without one.
        constraints: makes those of requests; None where the engine has no tokenizer.
        populations: of requests whose texts are resampled together.
    """

    reweighting: Reweighting | None = None
    constraints: EngineConstraints | None = None
    populations: Populations = field(default_factory=lambda: Populations(None, KEPT))

    @classmethod
    def of(cls, config: Any) -> Aids:
        """Those of vLLM's ``VllmConfig``; nothing is loaded yet but the classifier."""
        model = getattr(config, "model_config", None)
        if model is None or getattr(model, "skip_tokenizer_init", False):
            return cls()

        def tokenizer() -> Any:
            from vllm.tokenizers import cached_tokenizer_from_config

            return cached_tokenizer_from_config(model)

        size = model.get_vocab_size()
        classifier = classifier_of(config)
        reweighting = None if classifier is None else Reweighting(classifier, tokenizer, size)
        constraints = EngineConstraints(constraints_of(config), tokenizer, size, critics_of(config))
        constraints.load()
        places = getattr(getattr(config, "scheduler_config", None), "max_num_seqs", KEPT)
        return cls(reweighting, constraints, Populations(constraints, max(KEPT, places)))


def member_of(
    params: Any, prompt: Callable[[], list[int]], written: Callable[[], list[int]], aids: Aids
) -> Member[Drawing | None] | None:
    """The member that sampling parameters describe, None for those of a plain request.

    Args:
        params: vLLM's ``SamplingParams``, None in pooling models.
        prompt: gives the token ids of the prompt.
        written: gives the token ids written so far.
        aids: of the engine.
    """
    ours = (params.extra_args or {}).get(OURS) if params is not None else None
    if not isinstance(ours, dict) or "group" not in ours:
        return None
    if ours["place"] != MAIN:
        return Member(ours["group"], ours["place"], None)
    began = ours.get("n_written", 0)
    if began:  # the request was made when its text had begun, which is the end of its prompt
        prompt, written = _parted(prompt, written, began)
    reweighting, constraints = aids.reweighting, aids.constraints
    request = Request.from_dict(ours["request"], None if reweighting is None else reweighting.classifier)
    reweighted = constrained = None
    if request.caif and reweighting is not None:
        reweighted = reweighting.row(request.caif, request.horizon)
    if request.awrs is not None:
        assert constraints is not None, "requests with a constraint are refused where there is no tokenizer"
        constrained = constraints.row(request.awrs, ours["ends"], request.limit)
    seat = None
    if request.population is not None:
        name, number = ours["particle"]
        seat = Seat(name, number, tuple(ours["ends"]), aids.populations)
    ends = frozenset(ours.get("ends", ()))
    payload = Drawing(request, prompt, written, ours["measures"], reweighted, constrained, seat, began, ends)
    return Member(ours["group"], MAIN, payload)


def _with(written: Callable[[], list[int]], more: list[int]) -> Callable[[], list[int]]:
    return lambda: [*written(), *more]


def _parted(
    prompt: Callable[[], list[int]], written: Callable[[], list[int]], began: int
) -> tuple[Callable[[], list[int]], Callable[[], list[int]]]:
    return lambda: prompt()[:-began], lambda: prompt()[-began:] + written()

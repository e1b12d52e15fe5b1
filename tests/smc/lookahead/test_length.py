"""Length as lookahead, where the moves of tokens are too many to be listed."""

from __future__ import annotations

from typing import Any

import pytest

from textguide.constraints import Regex
from textguide.constraints.automata import automaton_of, token_automaton
from textguide.smc.lookahead.length import LengthLookahead

from ..toys import VOCABULARY


def test_moves_that_are_too_many_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    automaton = automaton_of(Regex("[abc]{2,9}"), VOCABULARY)
    assert automaton is not None
    walk, walks = token_automaton._walk, []

    def counted(*given: Any) -> Any:
        walks.append(given)
        return walk(*given)

    monkeypatch.setattr(token_automaton, "_walk", counted)
    monkeypatch.setattr(token_automaton, "MOVES", 1)
    ahead = LengthLookahead(automaton).begin(())
    assert [ahead.following(left) for left in (4, 3, 2)] == [None] * 3
    assert len(walks) == 1

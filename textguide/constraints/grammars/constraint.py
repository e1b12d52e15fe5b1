"""Texts of a grammar."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...support.checks import one_of
from .. import engines
from ..arguments import read_text, shortened
from ..base import Constraint, Session
from ..engines import llguidance_engine
from ..vocabulary import Vocabulary
from .rules import unproductive
from .templates import plain, starting_at


@dataclass(frozen=True)
class Grammar(Constraint):
    """Texts of a context-free grammar in Lark's notation.

    Names in capital letters are terminals, and ``%ignore`` defines what may come between terminals. The engine reads
    terminals greedily, as lexers do: a terminal takes as much as it can, so ``start: /a+/ "a"`` has no text. Join
    terminals that may overlap into one.

    Templates (``list{item, ","}``) are expanded, and a grammar may be ambiguous. Priorities are accepted and ignored,
    because they choose between derivations and do not change which texts ``lark``'s Earley parser accepts.

    Args:
        grammar: the grammar, or the path of a file that contains it (a ``pathlib.Path``, or a text that ends in
            ``.lark``).
        engine: ``llguidance`` or ``xgrammar``.
        start_rule: the rule whose texts are allowed, as ``lark.Lark(grammar, start=…)``.

    Raises:
        ValueError: ``start_rule`` is no rule of the grammar, a field has a value that cannot work, or a rule has no
            text at all. :meth:`start` raises it if the engine refuses the grammar.
    """

    grammar: Any
    engine: str = engines.DEFAULT
    start_rule: str = "start"

    kind = "grammar"

    def __post_init__(self) -> None:
        one_of("engine", self.engine, engines.NAMES)
        text = self.grammar
        if isinstance(text, os.PathLike) or (isinstance(text, str) and text.endswith(".lark") and "\n" not in text):
            text = read_text("grammar", Path(text))
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"grammar={shortened(repr(text))} must be a text with rules, the first of them start")
        object.__setattr__(self, "grammar", text)
        try:
            endless = unproductive(self._plain)
        except ValueError as error:
            raise ValueError(f"grammar={shortened(text)} cannot be used: {error}") from None
        if endless:
            raise ValueError(
                f"grammar={shortened(text)} cannot be used: no text ends the rule {endless[0]}, which needs itself "
                "in every alternative; add an alternative without it"
            )

    def to_dict(self) -> dict[str, Any]:
        values = {"kind": self.kind, "grammar": self.grammar, "engine": self.engine}
        return values if self.start_rule == "start" else {**values, "start_rule": self.start_rule}

    @property
    def _plain(self) -> str:
        """The grammar as the engines need it: without templates and priorities, and from its rule ``start``."""
        return starting_at(plain(self.grammar), self.start_rule)

    def start(self, vocabulary: Vocabulary) -> Session:
        label = f"grammar={shortened(self.grammar)}"
        if self.engine != engines.DEFAULT:
            return engines.xgrammar_session(label, "lark", self._plain, vocabulary)
        return engines.llguidance_session(label, llguidance_engine.lark(self._plain), vocabulary)

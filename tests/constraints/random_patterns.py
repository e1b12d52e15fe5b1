"""Random patterns of constructs that no automaton takes."""

from __future__ import annotations

import random

KINDS = {
    "references": ["ref", "ref", "ref", "branch reset"],
    "atomic": ["atomic", "possessive"],
    "lookaheads": ["ahead", "not ahead", "ref"],
    "lookbehinds": ["behind", "not behind"],
    "ends": ["end", "end", "start", "ahead", "not ahead", "behind", "not behind"],
    "conditionals": ["conditional", "asking"],
    "clusters": ["cluster", "behind", "not behind"],
    "fuzzy": ["fuzzy", "fuzzy", "ahead", "behind", "end"],
    "all": ["ref", "atomic", "possessive", "ahead", "not ahead", "behind", "not behind", "conditional", "asking",
            "branch reset", "end", "start", "case", "verb"],
}  # fmt: skip
LEAVES = ["a", "b", "-", "[ab]", ".", r"\w", "ab", "[^b]"]


class Patterns:
    """Random patterns."""

    def __init__(self, rng: random.Random, kinds: list[str]) -> None:
        self.rng, self.kinds, self.groups = rng, ["then", "then", "or", "repeat", "capture", *kinds], 0

    def one(self, depth: int = 4) -> str:
        rng = self.rng
        if depth <= 0 or rng.random() < 0.15:
            return rng.choice(LEAVES)
        kind, part = rng.choice(self.kinds), lambda: self.one(depth - 1)
        group = str(rng.randint(1, self.groups)) if self.groups else ""
        if kind == "capture":
            self.groups += 1
        if kind in ("ref", "conditional") and not group:
            return "a"
        lazy = rng.choice(["", "", "?"])
        return {
            "then": lambda: part() + part(),
            "or": lambda: f"(?:{part()}|{part()})",
            "repeat": lambda: f"(?:{part()}){rng.choice(['*', '+', '?', '{2}', '{1,2}', '{2,}'])}{lazy}",
            "capture": lambda: f"({part()})",
            "ref": lambda: f"(?:\\{group})",
            "branch reset": lambda: f"(?|(?:{part()})|(?:{part()}))",
            "atomic": lambda: f"(?>{part()})",
            "possessive": lambda: f"(?:{part()}){rng.choice(['*', '+', '?', '{1,2}'])}+",
            "ahead": lambda: f"(?={part()})",
            "not ahead": lambda: f"(?!{part()})",
            "behind": lambda: f"(?<={part()})",
            "not behind": lambda: f"(?<!{part()})",
            "end": lambda: rng.choice([r"\b", r"\B", "$", r"\Z", r"\m", r"\M", "(?m:$)"]),
            "start": lambda: rng.choice(["^", r"\A", r"\G", "(?m:^)"]),
            "conditional": lambda: f"(?({group}){part()}|{part()})",
            "asking": lambda: f"(?({rng.choice(['?=', '?!', '?<=', '?<!'])}{part()}){part()}|{part()})",
            "cluster": lambda: r"\X",
            "fuzzy": lambda: f"(?:{part()}){{e<=1}}",
            "case": lambda: f"(?i:{part()})",
            "verb": lambda: rng.choice(["(*FAIL)", "(*SKIP)", "(*PRUNE)"]),
        }[kind]()

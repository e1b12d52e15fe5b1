"""Regular constraints as finite automata, over bytes and over the tokens of a vocabulary: what looking ahead needs."""

from .token_automaton import TokenAutomaton, automaton_of

__all__ = ["TokenAutomaton", "automaton_of"]

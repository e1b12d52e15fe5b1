"""Regular constraints as finite automata over bytes and over the tokens of a vocabulary, for looking ahead."""

from .token_automaton import TokenAutomaton, automaton_of

__all__ = ["TokenAutomaton", "automaton_of"]

"""Molecules as SMILES strings."""

from .constraint import SMILES

__all__ = ["SMILES"]

"""Where guidance meets other people's decoding loops."""

from .hf import CFGLogitsProcessor

__all__ = ["CFGLogitsProcessor"]

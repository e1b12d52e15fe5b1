"""Where guidance meets other people's decoding loops."""

from .caif import CAIFLogitsProcessor
from .hf import CFGLogitsProcessor

__all__ = ["CAIFLogitsProcessor", "CFGLogitsProcessor"]

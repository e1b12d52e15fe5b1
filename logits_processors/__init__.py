"""Where guidance meets other people's decoding loops."""

from .awrs import AWRSLogitsProcessor
from .caif import CAIFLogitsProcessor
from .hf import CFGLogitsProcessor

__all__ = ["AWRSLogitsProcessor", "CAIFLogitsProcessor", "CFGLogitsProcessor"]

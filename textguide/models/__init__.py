"""Loading models: bundled ones, folders, GGUF files and hub names; adapters of a model."""

from .adapters import adapters
from .loading import default_device, load

__all__ = ["adapters", "default_device", "load"]

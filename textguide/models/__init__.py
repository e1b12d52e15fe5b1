"""Loading models: the bundled ones, a folder, or a hub name; adapters of a model."""

from .adapters import adapters
from .loading import default_device, load

__all__ = ["adapters", "default_device", "load"]

"""Loading models: the bundled ones, a folder, or a hub name."""

from .loading import default_device, load

__all__ = ["default_device", "load"]

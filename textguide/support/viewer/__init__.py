"""What guidance did, to be looked at in a browser: components that the playground, ``--html`` and notebooks share."""

from .notebook import widget
from .page import assets, import_map, page

__all__ = ["assets", "import_map", "page", "widget"]

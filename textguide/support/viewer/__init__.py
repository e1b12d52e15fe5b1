"""Components that show in a browser what guidance did, for the playground, ``--html`` and notebooks."""

from .notebook import widget
from .page import assets, import_map, page

__all__ = ["assets", "import_map", "page", "widget"]

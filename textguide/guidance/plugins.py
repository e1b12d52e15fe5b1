"""Methods that come from elsewhere: modules that define a guidance, imported when textguide's own methods are.

A module that is imported has registered its classes, and they then run wherever textguide's own do. Two ways to name
one: an entry point of the group ``textguide.guidance`` in an installed package, or ``TEXTGUIDE_METHODS``, an
environment variable with names of modules on Python's path, separated by commas.
"""

from __future__ import annotations

import importlib
import os
from importlib.metadata import entry_points

GROUP = "textguide.guidance"
VARIABLE = "TEXTGUIDE_METHODS"


def load() -> None:
    """Import them.

    Raises:
        ImportError: a module that ``TEXTGUIDE_METHODS`` names cannot be imported, or an entry point does not load; the
            message names it.
    """
    for point in entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:
            raise ImportError(
                f"the entry point {point.name} = {point.value} of {GROUP} does not load: {error}"
            ) from error
    for name in filter(None, (part.strip() for part in os.environ.get(VARIABLE, "").split(","))):
        try:
            importlib.import_module(name)
        except Exception as error:
            raise ImportError(
                f"{VARIABLE}={name}: the module cannot be imported ({error}); is it on PYTHONPATH?"
            ) from error

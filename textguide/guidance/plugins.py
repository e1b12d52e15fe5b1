"""Methods that come from elsewhere: modules that define a guidance, imported when textguide's own methods are.

A module that is imported has registered its classes, and they then run wherever textguide's own do. Two ways to name
one: an entry point of the group ``textguide.guidance`` in an installed package, or ``TEXTGUIDE_METHODS``, an
environment variable with names of modules on Python's path, separated by commas. A class may also be named by its
place, ``python:MODULE:CLASS``, where the one who names it may run code here: on the command line, not in a request.
"""

from __future__ import annotations

import importlib
import os
from importlib.metadata import entry_points
from typing import Any

from textguide.support.importing import named_object

from .base import Guidance

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


PREFIX = "python:"


def named(path: str) -> type[Guidance] | Guidance:
    """The guidance, or the class of one, that ``MODULE:NAME`` leads to.

    Raises:
        ValueError: there is no such thing, or it is something else; the message says which part is wrong.
    """
    value = named_object(path, "guidance")
    is_class = isinstance(value, type) and issubclass(value, Guidance) and "name" in vars(value)
    if not is_class and not isinstance(value, Guidance):
        what = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        raise ValueError(
            f"guidance 'python:{path}' gives {what}; it must be a subclass of textguide.guidance.Guidance with a name, "
            "or a guidance"
        )
    return value


def registered(values: Any) -> Any:
    """``values`` as JSON gives them, with each ``"method": "python:MODULE:CLASS"`` imported and called by its name.

    Raises:
        ValueError: as for :func:`named`, or a guidance stands where fields belong to a class.
    """
    if isinstance(values, list):
        return [registered(value) for value in values]
    if not isinstance(values, dict):
        return values
    found = {key: registered(value) for key, value in values.items()}
    method = found.get("method")
    if isinstance(method, str) and method.startswith(PREFIX):
        value = named(method.removeprefix(PREFIX))
        if isinstance(value, Guidance):
            if len(found) > 1:
                raise ValueError(f"method={method!r} is a guidance and has its fields; leave the others out")
            return value.to_dict()
        found["method"] = value.name
    return found

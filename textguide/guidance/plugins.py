"""Methods from other packages: modules that define a guidance, which are imported together with textguide's methods.

When a module is imported, its classes are registered. They can then be used in the same way as textguide's own methods.
There are two ways to name such a module: an entry point of the group ``textguide.guidance`` in an installed package, or
the environment variable ``TEXTGUIDE_METHODS`` with names of modules on Python's path, separated by commas. A class can
also be named as ``python:MODULE:CLASS``. As this runs code, it is accepted on the command line, but not in requests.
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
    """Import the modules of all entry points and of ``TEXTGUIDE_METHODS``.

    Raises:
        ImportError: a module of ``TEXTGUIDE_METHODS`` cannot be imported, or an entry point does not load; the message
            names it.
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
    """Import ``MODULE:NAME``, a guidance or a class of guidance.

    Raises:
        ValueError: it does not exist, or it is something else; the message names the wrong part.
    """
    value = named_object(path, "guidance")
    is_class = isinstance(value, type) and issubclass(value, Guidance) and "name" in vars(value)
    if not is_class and not isinstance(value, Guidance):
        kind = f"the class {value.__name__}" if isinstance(value, type) else f"of type {type(value).__name__}"
        raise ValueError(
            f"guidance 'python:{path}' is {kind}; it must be a subclass of textguide.guidance.Guidance with a name, "
            "or a guidance"
        )
    return value


def registered(values: Any) -> Any:
    """``values`` from JSON, in which each ``"method": "python:MODULE:CLASS"`` is imported and replaced with its name.

    Raises:
        ValueError: as for :func:`named`, or there are further fields although the name is a guidance and not a class.
    """
    if isinstance(values, list):
        return [registered(value) for value in values]
    if not isinstance(values, dict):
        return values
    fields = {key: registered(value) for key, value in values.items()}
    method = fields.get("method")
    if isinstance(method, str) and method.startswith(PREFIX):
        value = named(method.removeprefix(PREFIX))
        if isinstance(value, Guidance):
            if len(fields) > 1:
                raise ValueError(f"method={method!r} is a guidance, whose fields are set; leave the others out")
            return value.to_dict()
        fields["method"] = value.name
    return fields

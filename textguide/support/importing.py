"""Python objects that are named by their place."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any


def named_object(path: str, what: str) -> Any:
    """The object that ``MODULE:NAME`` leads to; modules in the working directory are found too.

    Args:
        path: the place.
        what: names the argument in messages: ``classifier``, ``constraint``.

    Raises:
        ValueError: there is no such thing; the message says which part is missing.
    """
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise ValueError(f"{what} 'python:{path}' must be python:MODULE:NAME")
    added = os.getcwd()
    sys.path.insert(0, added)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{what} 'python:{path}': there is no module {error.name!r}; run where it can be imported"
        ) from error
    finally:
        sys.path.remove(added)
    value = getattr(module, attribute, None)
    if value is None:
        raise ValueError(f"{what} 'python:{path}': module {module_name!r} has no {attribute!r}")
    return value

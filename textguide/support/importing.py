"""Python objects that are named as ``MODULE:NAME``."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any


def named_object(path: str, what: str) -> Any:
    """Import the object ``MODULE:NAME``; modules in the working directory are found too.

    Args:
        path: ``MODULE:NAME``.
        what: the argument in messages, such as ``classifier`` or ``constraint``.

    Raises:
        ValueError: there is no such module or name.
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
            f"{what} 'python:{path}': there is no module {error.name!r}; run in a folder from which it can be imported"
        ) from error
    finally:
        sys.path.remove(added)
    value = getattr(module, attribute, None)
    if value is None:
        raise ValueError(f"{what} 'python:{path}': module {module_name!r} has no {attribute!r}")
    return value

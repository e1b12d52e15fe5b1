"""Shallow copies of modules, which share their parameters, buffers and hooks."""

from __future__ import annotations

import copy
import functools
import types
from typing import Any


def twin_of(module: Any) -> Any:
    """``module`` with a list of children of its own; whatever is put into that list leaves the module as it is."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    if "_hf_hook" in module.__dict__:  # accelerate has bound the module's own forward into its hook
        twin._old_forward = types.MethodType(type(module).forward, twin)
        twin.forward = functools.partial(module.__dict__["forward"].func, twin)
    return twin

"""Methods of vLLM that are wrapped because vLLM has no hook at that place. Knows no vLLM.

Every wrapper is put in by :func:`wrap_once`, so ``grep wrap_once`` finds all of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

_MARK = "_textguide_wrappers"


def wrap_once(owner: Any, name: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replace ``owner.name`` by ``wrapper(owner.name)``, unless that was done in this process already.

    Args:
        owner: a class or a module.
        name: of its method or function.
        wrapper: from the present method to the new one.
    """
    method = getattr(owner, name)
    known: frozenset[str] = getattr(method, _MARK, frozenset())
    mark = f"{wrapper.__module__}.{wrapper.__qualname__}"
    if mark not in known:
        # Copies the attributes of the method too, and with them the marks of earlier wrappers.
        wrapped = functools.wraps(method)(wrapper(method))
        setattr(wrapped, _MARK, known | {mark})
        setattr(owner, name, wrapped)

"""Sphinx's roles in docstrings as Markdown: ``:func:`textguide.generate``` becomes a link where there is a page."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|meth|mod|attr|data|exc):`(~?)([^`]+)`")


@lru_cache(maxsize=1)
def reference_names() -> tuple[str, ...]:
    """The public names, each of which has a page."""
    import textguide

    return tuple(name for name in textguide.__all__ if not name.startswith("__"))


class Roles(griffe.Extension):
    """Rewrites docstrings as they are read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """One module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """``text`` with every role as code, and as a link where the name has a page."""
    return _ROLE.sub(lambda found: _linked(found[2]), text)


def _linked(name: str) -> str:
    short = name.removeprefix("textguide.")
    shown = f"`{name}`" if "." not in name or name.startswith("textguide.") else f"`{name.lstrip('.')}`"
    page = short.split(".")[0]
    return f"[{shown}]({page}.md)" if page in reference_names() and short == page else shown

"""What a client is told of an error."""

from __future__ import annotations

import logging

from ..support.errors import MissingExtraError, ModelUnavailableError

LOG = logging.getLogger("textguide.playground")


class BusyError(Exception):
    """Too many runs at once."""


def message_of(error: BaseException) -> str:
    """What the visitor is told; what nobody expected goes to the log as well."""
    if isinstance(error, (ValueError, MissingExtraError, ModelUnavailableError)):
        return " ".join(str(error).split())
    if isinstance(error, MemoryError) or "out of memory" in str(error):
        return "the machine ran out of memory; ask for fewer tokens or particles"
    LOG.exception("a run failed", exc_info=error)
    return f"something went wrong in the server ({type(error).__name__}); its log has more"

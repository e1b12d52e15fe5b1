"""Why a request is not answered, and what its client is told."""

from __future__ import annotations

import logging

from ..support.checks import brief_message
from ..support.errors import MissingExtraError, ModelUnavailableError

LOG = logging.getLogger("textguide.serving")


class RefusedError(ValueError):
    """A request cannot be answered.

    Args:
        message: what to change.
        field: the field of the request that it is about; None if its message names it, or if it is about none.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class BusyError(Exception):
    """Too many requests are running or waiting."""


class ClientLeftError(Exception):
    """Raised inside a run whose client has disconnected."""


def error_message(error: BaseException) -> str:
    """The text that the client sees. An error that nobody expected is logged and described by its type only, since its
    message may contain paths of the server."""
    if isinstance(error, (ValueError, BusyError, MissingExtraError, ModelUnavailableError)):
        return brief_message(" ".join(str(error).split()))
    if isinstance(error, RecursionError):
        return "the request is nested too deeply; send less"
    if isinstance(error, MemoryError) or "out of memory" in str(error):
        return "the machine ran out of memory; ask for fewer tokens or particles"
    LOG.exception("a run failed", exc_info=error)
    return f"something went wrong in the server ({type(error).__name__}); its log has more"

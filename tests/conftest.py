"""Settings of the whole suite."""

from __future__ import annotations

from types import FunctionType

from hypothesis import settings

# A busy machine is no failure: examples take as long as they take.
settings.register_profile("textguide", deadline=None)
settings.load_profile("textguide")


def pytest_make_parametrize_id(val: object) -> str | None:
    """Functions by their name: a test's name that holds an address is another one in each process."""
    return val.__qualname__.replace("<locals>.", "") if isinstance(val, FunctionType) else None

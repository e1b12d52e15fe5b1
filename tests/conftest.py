"""Settings of the whole suite."""

from __future__ import annotations

from hypothesis import settings

# A busy machine is no failure: examples take as long as they take.
settings.register_profile("textguide", deadline=None)
settings.load_profile("textguide")

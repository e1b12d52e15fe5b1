"""Settings of the whole suite."""

from __future__ import annotations

import random
from types import FunctionType

import numpy as np
import pytest
import torch
from hypothesis import settings

# A busy machine is no failure: examples take as long as they take. They are the same in every run, so that what passes
# here passes elsewhere; `--hypothesis-profile fuzz` looks for new ones.
settings.register_profile("textguide", deadline=None, derandomize=True)
settings.register_profile("fuzz", deadline=None, derandomize=False)
settings.load_profile("textguide")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Every test begins with the same randomness, whichever tests ran before it in its process."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the one that libraries draw from
    torch.manual_seed(0)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Functions by their name: a test's name that holds an address is another one in each process."""
    return val.__qualname__.replace("<locals>.", "") if isinstance(val, FunctionType) else None

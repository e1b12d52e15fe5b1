"""Loads every bundled model and data file of the installed package, and prints what was loaded as JSON."""

import json
import sys

from safetensors import safe_open

import textguide
from textguide import captioning, diffusion
from textguide.captioning import loading as captioners
from textguide.classifiers import resolving
from textguide.diffusion import loading as canvases
from textguide.forward import steering_vectors
from textguide.models import small
from textguide.smc.lookahead import naming, stored
from textguide.support.errors import MissingExtraError, ModelUnavailableError
from textguide.tasks import loaders

others = []


def those_that_load(kind, names, load):
    """The names that load. The others need a package that is not installed, and their errors name it."""
    loaded = []
    for name in sorted(names):
        try:
            load(name)
            loaded.append(name)
        except (MissingExtraError, ModelUnavailableError) as error:
            assert "pip install" in str(error), error
            others.append(f"{kind}: {name}")
    return loaded


def read_weights(folder):
    """Read every tensor in a folder."""
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            assert all(opened.get_tensor(name).numel() for name in opened.keys())  # noqa: SIM118 (it is not a mapping)


report = {
    "models": those_that_load("models", small.NAMES, lambda name: textguide.load(name, device="cpu")),
    "diffusion": those_that_load("diffusion", canvases.bundled(), lambda name: diffusion.load(name, device="cpu")),
    "captioning": those_that_load("captioning", captioners.bundled(), lambda name: captioning.load(name, device="cpu")),
    "classifiers": those_that_load("classifiers", [path.name for path in resolving.HOME.iterdir()], resolving.resolve),
    "vectors": those_that_load("vectors", steering_vectors.BUNDLED, textguide.steering.load),
    "lookahead": [stored.read(naming.SHIPPED).kind],
    "passages": len(loaders.lambada_mini()["test"]),
    "others": others,
}
for home in (resolving.HOME, canvases.BUNDLED):
    for path in home.iterdir():
        read_weights(path)
json.dump(report, sys.stdout)

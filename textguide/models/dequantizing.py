"""From a GGUF file to a model of transformers with plain weights, and to its tokenizer.

transformers dequantises the weights and derives the configuration. What it leaves out of that is put back here where it
changes what the model says (:func:`restore`), and a file that it reads in part is refused.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..support.errors import MissingExtraError, ModelUnavailableError
from .quantized_file import Header

_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_KEPT = {
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
"""Metadata that shape the model, and the fields of configurations that hold them."""


def read(header: Header, dtype: Any, advance: Callable[[int], Any]) -> tuple[Any, Any]:
    """The model and the tokenizer of a file, on the CPU.

    Args:
        header: of the file.
        dtype: of the weights, to which each is rounded as it is dequantised.
        advance: called with the number of weights that were just dequantised.

    Raises:
        MissingExtraError: the package ``gguf`` is not installed.
        ModelUnavailableError: transformers does not read the architecture, or not all of the file; the file is cut off.
    """
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtraError("gguf", "gguf", f"reading {header.path.name}")
    header.check_length()
    try:
        with _alone(header.path) as (folder, name), _counted(advance):
            return _read(header, dtype, folder, {"gguf_file": name, "local_files_only": True})
    except ModelUnavailableError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError, ImportError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk
            raise
        reason = " ".join(str(error).split())
        if "not supported" in reason or isinstance(error, NotImplementedError):
            import transformers

            raise ModelUnavailableError(
                f"{header.path} holds a model of the architecture {header.architecture!r}, which transformers "
                f"{transformers.__version__} does not read from GGUF files; use its folder in transformers' format"
            ) from error
        if "mismatched_sizes" in reason:
            reason = "its tensors have other shapes than transformers derives from its metadata"
        raise ModelUnavailableError(f"{header.path} could not be converted: {reason[:300]}") from error


def _read(header: Header, dtype: Any, folder: Path, source: dict[str, Any]) -> tuple[Any, Any]:
    import torch
    import transformers as tf

    config = tf.AutoConfig.from_pretrained(folder, **source)
    values = config.to_dict()
    restore(values, header)
    config = type(config).from_dict(values)
    auto = tf.AutoModelForSeq2SeqLM if config.is_encoder_decoder else tf.AutoModelForCausalLM
    plain = {"quantization_config": tf.GgufConfig(dequantize=True)} if hasattr(tf, "GgufConfig") else {}
    found, report = auto.from_pretrained(
        folder, config=config, dtype=dtype, output_loading_info=True, **plain, **source
    )
    _check_complete(header, found, report["missing_keys"])
    # A model read from GGUF refuses save_pretrained, so its weights move into a fresh one.
    # Dequantised weights are ordinary weights: the copy must not load as a quantised checkpoint.
    values = found.config.to_dict()
    values.pop("quantization_config", None)
    with torch.device("meta"):
        model = type(found)(type(found.config).from_dict(values))
    model.load_state_dict(found.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = found.generation_config
    return model, tf.AutoTokenizer.from_pretrained(folder, **source)


def _check_complete(header: Header, model: Any, missing: Iterable[str]) -> None:
    if absent := sorted(missing):
        raise ModelUnavailableError(
            f"{header.path} lacks {len(absent)} of the tensors of {type(model).__name__}, such as {absent[0]}; "
            "get a whole file"
        )
    tied = bool(getattr(model.config, "tie_word_embeddings", False))
    # Positions are restored below; where the embeddings are the last layer too, a copy of them is not read.
    left_out = {tensor.name for tensor in header.tensors if tensor.name.startswith("rope_")}
    left_out |= {"output.weight"} if tied else set()
    held = sum(tensor.size for tensor in header.tensors if tensor.name not in left_out)
    taken = sum({tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values()}.values())
    if held > taken:
        raise ModelUnavailableError(
            f"{header.path} holds {held - taken} weights that transformers has no place for in "
            f"{type(model).__name__}; use the model's folder in transformers' format"
        )


def restore(config: dict[str, Any], header: Header) -> None:
    """Put into a configuration what the file says of attention and positions and transformers does not read.

    Args:
        config: the configuration that transformers derived, as a dict; changed in place.
        header: of the file.

    Raises:
        ModelUnavailableError: the file scales positions in a way that cannot be put into the configuration.
    """
    for key, name in _KEPT.items():
        value = header.of_model(key)
        if name == "head_dim" and "global_head_dim" in config:  # two kinds of layers, which transformers tells apart
            continue
        if name in config and isinstance(value, (int, float)) and value and config[name] != value:
            config[name] = value
            if name == "sliding_window":
                config.pop("layer_types", None)  # follows from it
    positions = config.get("rope_parameters") or {}
    positions = positions.get("full_attention", positions)
    scaling = header.of_model("rope.scaling.type", "none")
    if not positions:
        if scaling != "none":
            raise _unknown_positions(header, scaling)
        return
    positions["rope_theta"] = header.of_model("rope.freq_base", positions.get("rope_theta"))
    if positions.get("rope_type", "default") != "default":  # transformers knows
        return
    frequencies = header.floats("rope_freqs.weight")
    factor = header.of_model("rope.scaling.factor")
    if scaling == "linear" and factor:
        positions |= {"rope_type": "linear", "factor": factor}
    elif scaling == "yarn" and factor and (length := header.of_model("rope.scaling.original_context_length")):
        positions |= {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": length}
    elif scaling != "none":
        raise _unknown_positions(header, scaling)
    if frequencies is not None and set(frequencies) != {1.0}:
        factor = max(frequencies)
        expected = _llama3_divisors(len(frequencies), positions["rope_theta"], factor)
        if scaling != "none" or not all(map(_close, frequencies, expected)):
            raise _unknown_positions(header, "rope_freqs.weight")
        positions |= {"rope_type": "llama3", "factor": factor, **_LLAMA3}


def _llama3_divisors(count: int, theta: float, factor: float) -> list[float]:
    """What Llama 3.1 divides each of its ``count`` frequencies by."""
    low, high, length = (_LLAMA3[name] for name in _LLAMA3)
    divisors = []
    for i in range(count):
        turns = length * theta ** (-i / count) / (2 * math.pi)  # in the context it was first trained on
        smooth = min(1.0, max(0.0, (turns - low) / (high - low)))
        divisors.append(1 / ((1 - smooth) / factor + smooth))
    return divisors


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-3)


def _unknown_positions(header: Header, what: str) -> ModelUnavailableError:
    return ModelUnavailableError(
        f"{header.path} scales its positions ({what}) in a way that is not read from {header.architecture!r} GGUF "
        "files; use the model's folder in transformers' format"
    )


@contextmanager
def _alone(path: Path) -> Iterator[tuple[Path, str]]:
    """Folder and name under which the file stands by itself: transformers would read what lies beside it too."""
    with tempfile.TemporaryDirectory(prefix="textguide-") as folder:
        try:
            os.symlink(path.absolute(), Path(folder) / "model.gguf")
        except OSError:  # a system that lets administrators alone make links
            yield path.absolute().parent, path.name
        else:
            yield Path(folder), "model.gguf"


@contextmanager
def quiet() -> Iterator[None]:
    """Without the notices and bars of transformers."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _counted(advance: Callable[[int], Any]) -> Iterator[None]:
    """Report progress. transformers offers none but a bar on standard error, in whose place this stands meanwhile."""
    reader: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    bar = getattr(reader, "tqdm", None)

    def counted(tensors: Iterable[Any], **_: Any) -> Iterator[Any]:
        for tensor in tensors:
            yield tensor
            advance(int(tensor.n_elements))

    try:
        reader.tqdm = counted
        yield
    finally:
        reader.tqdm = bar

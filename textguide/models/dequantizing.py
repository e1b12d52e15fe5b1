"""Reading a GGUF file as a transformers model with plain weights, and its tokenizer.

transformers dequantises the weights and derives the configuration. It ignores some metadata that change the model's
output; :func:`restore` adds them to the configuration. A file that transformers would only read in part is refused.
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
_FIELDS = {
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
"""Metadata that change the model, and the configuration fields they belong to."""


def read(header: Header, dtype: Any, advance: Callable[[int], Any]) -> tuple[Any, Any]:
    """Read the model and the tokenizer of a file, on the CPU.

    Args:
        header: the header of the file.
        dtype: the dtype of the weights, to which each is rounded when it is dequantised.
        advance: called with the number of weights that were just dequantised.

    Raises:
        MissingExtraError: the package ``gguf`` is not installed.
        ModelUnavailableError: transformers does not read the architecture or a part of the file; the file is cut off.
    """
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtraError("gguf", "gguf", f"reading {header.path.name}")
    header.check_length()
    try:
        with _separate_folder(header.path) as (folder, name), _progress(advance):
            return _read(header, dtype, folder, {"gguf_file": name, "local_files_only": True})
    except ModelUnavailableError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError, ImportError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # an error of the disk, not of the file's content
            raise
        reason = " ".join(str(error).split())
        if "not supported" in reason or isinstance(error, NotImplementedError):
            import transformers

            raise ModelUnavailableError(
                f"{header.path} contains a model of the architecture {header.architecture!r}, which transformers "
                f"{transformers.__version__} does not read from GGUF files; use its folder in transformers' format"
            ) from error
        if "mismatched_sizes" in reason:
            reason = "the shapes of its tensors differ from those that transformers derives from its metadata"
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
    dequantized, report = auto.from_pretrained(
        folder, config=config, dtype=dtype, output_loading_info=True, **plain, **source
    )
    _check_complete(header, dequantized, report["missing_keys"])
    # A model that was read from GGUF refuses save_pretrained, so its weights are moved into a new one. The new
    # configuration must not describe a quantised checkpoint, because the weights are plain.
    values = dequantized.config.to_dict()
    values.pop("quantization_config", None)
    with torch.device("meta"):
        model = type(dequantized)(type(dequantized.config).from_dict(values))
    model.load_state_dict(dequantized.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = dequantized.generation_config
    return model, tf.AutoTokenizer.from_pretrained(folder, **source)


def _check_complete(header: Header, model: Any, missing: Iterable[str]) -> None:
    absent = sorted(missing)
    if absent:
        raise ModelUnavailableError(
            f"{header.path} lacks {len(absent)} of the tensors of {type(model).__name__}, such as {absent[0]}; "
            "use a complete file"
        )
    # Positions are restored below. If input and output embeddings are tied, transformers skips the second copy.
    skipped = {tensor.name for tensor in header.tensors if tensor.name.startswith("rope_")}
    if getattr(model.config, "tie_word_embeddings", False):
        skipped.add("output.weight")
    in_file = sum(tensor.size for tensor in header.tensors if tensor.name not in skipped)
    # Tied weights have one address and count once.
    in_model = sum({tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values()}.values())
    if in_file > in_model:
        raise ModelUnavailableError(
            f"{header.path} contains {in_file - in_model} weights that transformers does not read into "
            f"{type(model).__name__}; use the model's folder in transformers' format"
        )


def restore(config: dict[str, Any], header: Header) -> None:
    """Add to a configuration what the file specifies about attention and positions, if transformers ignores it.

    Args:
        config: the configuration that transformers derived, as a dict; changed in place.
        header: the header of the file.

    Raises:
        ModelUnavailableError: the file scales positions in a way that the configuration cannot express.
    """
    _restore_fields(config, header)
    positions = config.get("rope_parameters") or {}
    positions = positions.get("full_attention", positions)
    scaling = header.of_model("rope.scaling.type", "none")
    if not positions:
        if scaling != "none":
            raise _unknown_positions(header, scaling)
        return
    positions["rope_theta"] = header.of_model("rope.freq_base", positions.get("rope_theta"))
    if positions.get("rope_type", "default") == "default":  # else transformers has read the scaling
        positions |= _scaled_positions(header, scaling)
        positions |= _scaled_frequencies(header, scaling, positions["rope_theta"])


def _restore_fields(config: dict[str, Any], header: Header) -> None:
    for key, name in _FIELDS.items():
        value = header.of_model(key)
        if name == "head_dim" and "global_head_dim" in config:  # transformers reads both kinds of layers
            continue
        if name in config and isinstance(value, (int, float)) and value and config[name] != value:
            config[name] = value
            if name == "sliding_window":
                config.pop("layer_types", None)  # derived from it again


def _scaled_positions(header: Header, scaling: str) -> dict[str, Any]:
    """The rope parameters for the scaling that the metadata name."""
    if scaling == "none":
        return {}
    factor = header.of_model("rope.scaling.factor")
    length = header.of_model("rope.scaling.original_context_length")
    if scaling == "linear" and factor:
        return {"rope_type": "linear", "factor": factor}
    if scaling == "yarn" and factor and length:
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": length}
    raise _unknown_positions(header, scaling)


def _scaled_frequencies(header: Header, scaling: str, theta: float) -> dict[str, Any]:
    """The rope parameters for a tensor of divisors, which Llama 3.1 has instead of metadata."""
    frequencies = header.floats("rope_freqs.weight")
    if frequencies is None or set(frequencies) == {1.0}:
        return {}
    factor = max(frequencies)
    expected = _llama3_divisors(len(frequencies), theta, factor)
    if scaling != "none" or not all(map(_close, frequencies, expected)):
        raise _unknown_positions(header, "rope_freqs.weight")
    return {"rope_type": "llama3", "factor": factor, **_LLAMA3}


def _llama3_divisors(count: int, theta: float, factor: float) -> list[float]:
    """What Llama 3.1 divides each of its ``count`` frequencies by."""
    low = _LLAMA3["low_freq_factor"]
    high = _LLAMA3["high_freq_factor"]
    length = _LLAMA3["original_max_position_embeddings"]
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
        f"{header.path} scales its positions ({what}) in a way that is not supported for {header.architecture!r} GGUF "
        "files; use the model's folder in transformers' format"
    )


@contextmanager
def _separate_folder(path: Path) -> Iterator[tuple[Path, str]]:
    """A folder that only contains a link to the file, and the link's name.

    transformers would also read other files in the folder of the GGUF file, such as a ``config.json``.
    """
    with tempfile.TemporaryDirectory(prefix="textguide-") as folder:
        try:
            os.symlink(path.absolute(), Path(folder) / "model.gguf")
        except OSError:  # Windows only lets administrators create links
            yield path.absolute().parent, path.name
        else:
            yield Path(folder), "model.gguf"


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the messages and progress bars of transformers."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _progress(advance: Callable[[int], Any]) -> Iterator[None]:
    """Report progress to ``advance``. transformers only has a tqdm bar, which is replaced while the file is read."""
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

"""Run one case in the way that it names, and compare it with the truth."""

from __future__ import annotations

import contextlib
import re
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import textguide
from textguide import CAIF, GuidanceLogitsProcessor, guidance, guided_decoding

from ..classifiers.test_reweighting import TONE
from ..guidance import test_apg, test_contrastive, test_dola, test_formula, test_nag  # noqa: F401 (formulas)
from . import models
from .cases import Case
from .truth import Oracle, Truth, difference

RULES: dict[str, Callable[..., Any]] = {
    "cfg": textguide.CFG,
    "apg": guidance.APG,
    "nag": guidance.NAG,
    "dola": guidance.DoLa,
    "contrastive": guidance.ContrastiveDecoding,
    "formula": lambda: guidance.Formula("1.5*cond - 0.5*last"),
}


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Args:
        kind: ``equal``, ``refused``, ``invalid`` (transformers itself refuses the options) or ``FINDING``.
        detail: the reason, or what differs.
    """

    kind: str
    detail: str = ""


class Differs(Exception):
    """A result is not the truth."""


def run(case: Case) -> Outcome:
    """Run ``case``; never raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _run(case)
        except Exception as error:  # of the truth
            return Outcome("invalid", _line(error))


def _run(case: Case) -> Outcome:
    model = _model(case)
    others = {"amateur": models.amateur(case.dtype)} if case.rule == "contrastive" else {}
    combined = _guidance(case)
    truth = Truth(case, model, combined, others)
    expected = None
    if case.entry not in ("score", "chat"):
        torch.manual_seed(case.seed)
        expected = _expected(case, truth)
    try:
        WAYS[case.entry](case, model, combined, others, truth, expected)
    except Differs as error:
        return Outcome("FINDING", str(error))
    except ValueError as error:
        return _refusal(case, error)
    except Exception as error:
        if _crashes_alone(case, model):
            return Outcome("invalid", f"transformers alone: {_line(error)}")
        return Outcome("FINDING", f"crash: {_line(error)} {_where(error)}")
    if "guidance_scale" in case.options and case.options["guidance_scale"] != 1 and case.rule:
        return Outcome("FINDING", "guidance_scale= was not refused")
    return Outcome("equal")


def _crashes_alone(case: Case, model: Any) -> bool:
    """Whether transformers' own decoding without guidance crashes."""
    if "cache_implementation" not in case.options:
        return False
    try:
        _call(case, model)
    except Exception:
        return True
    return False


def _model(case: Case) -> Any:
    setting = (case.model, case.dtype, case.masked, case.pad_is_bos)
    if case.mode == "eval":
        return models.build(*setting)
    model = models.fresh(*setting)
    model.train()
    if case.mode == "trained":
        with contextlib.suppress(ValueError):
            textguide.generate(model, models.Letters(), [[5, 6], [7]], textguide.CFG(1.5, (9, 8, 7)), max_new_tokens=2)
        model.eval()
    return model


def _guidance(case: Case) -> Any:
    parts: list[Any] = []
    if case.rule:
        fields = dict(case.fields)
        if case.negatives is not None:
            rows = case.negatives
            fields["negative_prompt"] = tuple(rows[0]) if len(rows) == 1 else tuple(map(tuple, rows))
        parts.append(RULES[case.rule](**fields))
    if case.classifier:
        parts.append(CAIF(TONE, "high", case.classifier, top_k=7))
    return guidance.as_guidance(parts) if parts else None


def _options(case: Case) -> dict[str, Any]:
    return {name: value for name, value in case.options.items() if name not in ("batch_size", "guidance_scale")}


def _expected(case: Case, truth: Truth) -> Any:
    """What transformers' own loop writes with the guided logits."""
    start = [truth.model.config.decoder_start_token_id] if case.is_encoder_decoder else None
    rows = [start or prompt for prompt in case.prompts]
    ids, mask = _padded(rows, truth.model.generation_config.pad_token_id, "left")
    oracle = Oracle(truth, ids.shape[1])
    options = {
        name: value for name, value in _options(case).items() if name not in ("use_cache", "cache_implementation")
    }
    options = {"do_sample": False, **options}
    return oracle.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=case.new,
        use_cache=False,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )


def _padded(rows: Sequence[Sequence[int]], pad: int, side: str) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids = []
    mask = []
    for row in rows:
        fill = [pad] * (width - len(row))
        ids.append([*fill, *row] if side == "left" else [*row, *fill])
        mask.append([*[0] * len(fill), *[1] * len(row)] if side == "left" else [*[1] * len(row), *[0] * len(fill)])
    return torch.tensor(ids), torch.tensor(mask)


def _call(case: Case, model: Any, **options: Any) -> Any:
    """transformers' own ``generate``."""
    side = "right" if case.is_encoder_decoder else "left"
    ids, mask = _padded(case.prompts, model.generation_config.pad_token_id, side)
    passed = {"do_sample": False, **_options(case), **options}
    if "guidance_scale" in case.options:
        passed["guidance_scale"] = case.options["guidance_scale"]
    torch.manual_seed(case.seed)
    return model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=case.new, **passed), ids.shape[1]


# -- the ways in -----------------------------------------------------------------------------------------------------


def _generate(case: Case, model: Any, combined: Any, others: Any, truth: Truth, expected: Any, **more: Any) -> None:
    watch = _Watch()
    options = {"do_sample": False, **case.options, **more}
    options.pop("batch_size", None)
    options["batch_size"] = None if case.samples else case.options.get("batch_size")
    torch.manual_seed(case.seed)
    result = textguide.generate(
        model, models.Letters(case.pad_is_bos), _prompts(case, model), combined, max_new_tokens=case.new,
        models=others or None, observer=watch, **options,
    )  # fmt: skip
    for row, (tokens, log_probs) in enumerate(zip(result.new_tokens, result.log_probs, strict=True)):
        for step, token in enumerate(tokens):
            right = truth.log_probs(_row_of(case, row, len(result.new_tokens)), tokens[:step])
            _close(case, truth, log_probs[step : step + 1], right[token : token + 1], f"log_probs[{row}][{step}]")
    if options["batch_size"] is None:
        _check_watch(case, truth, watch, result.new_tokens)
    _same(case, truth, result.new_tokens, expected)


def _speculation(case: Case, model: Any, combined: Any, others: Any, truth: Truth, expected: Any) -> None:
    _generate(case, model, combined, others, truth, expected, speculation="prompt-lookup")


def _stream(case: Case, model: Any, combined: Any, others: Any, truth: Truth, expected: Any) -> None:
    rows: list[list[int]] = [[] for _ in case.prompts]
    torch.manual_seed(case.seed)
    for chunk in textguide.stream(
        model, models.Letters(case.pad_is_bos), _prompts(case, model), combined, max_new_tokens=case.new,
        models=others or None, **{"do_sample": False, **case.options},
    ):  # fmt: skip
        rows[chunk.row].append(chunk.token)
    _same(case, truth, rows, expected)


def _score(case: Case, model: Any, combined: Any, others: Any, truth: Truth, expected: Any) -> None:
    result = textguide.score(
        model, models.Letters(case.pad_is_bos), case.prompts, case.continuations, combined, models=others or None,
        horizon=case.new, batch_size=2,
    )  # fmt: skip
    for row, continuation in enumerate(case.continuations):
        for step, token in enumerate(continuation):
            right = truth.log_probs(row, continuation[:step])
            value = result.log_probs[row][0, step : step + 1]
            _close(case, truth, value, right[token : token + 1], f"score: log_probs[{row}][{step}]")


def _custom_generate(case: Case, model: Any, combined: Any, others: Any, truth: Truth, expected: Any) -> None:
    watch = _Watch()
    decoding = guided_decoding(combined, tokenizer=models.Letters(), models=others or None, observer=watch)
    out, width = _call(case, model, custom_generate=decoding)
    width = 1 if case.is_encoder_decoder else width
    tokens = _until_end(case, out[:, width:].tolist())
    _check_watch(case, truth, watch, tokens)
    _same(case, truth, tokens, expected)


def _drop_in(case: Case, model: Any, combined: Any, others: Any, truth: Truth, expected: Any) -> None:
    processors = _processors(case, model, combined, others)
    out, width = _call(case, model, logits_processor=processors, return_dict_in_generate=True, output_scores=True)
    width = 1 if case.is_encoder_decoder else width
    tokens = _until_end(case, out.sequences[:, width:].tolist())
    rights = _until_end(case, expected.sequences[:, expected.sequences.shape[1] - len(expected.scores) :].tolist())
    for row, written in enumerate(tokens):
        for step in range(len(written)):
            if written[:step] != rights[row][:step]:
                break
            value = out.scores[step][row].log_softmax(-1)
            right = expected.scores[step][row].log_softmax(-1)
            if not torch.equal(value.isneginf(), right.isneginf()) and case.samples:
                break  # a token at the border of what a warper keeps; the draw is compared below
            _close(case, truth, value, right, f"scores[{step}][{row}]")
    _same(case, truth, tokens, expected)


def _beams(case: Case, model: Any, combined: Any, others: Any, truth: Truth, expected: Any) -> None:
    processors = _processors(case, model, combined, others)
    out, _ = _call(case, model, logits_processor=processors, return_dict_in_generate=True, output_scores=True)
    _close(case, truth, out.sequences_scores, expected.sequences_scores, "sequences_scores", factor=case.new)


def _lookup(case: Case, model: Any, combined: Any, others: Any, truth: Truth, expected: Any) -> None:
    processors = _processors(case, model, combined, others)
    out, width = _call(case, model, logits_processor=processors, prompt_lookup_num_tokens=2)
    width = 1 if case.is_encoder_decoder else width
    _same(case, truth, _until_end(case, out[:, width:].tolist()), expected)


def _chat(case: Case, model: Any, combined: Any, others: Any, truth: Truth, expected: Any) -> None:
    """A plain text and a chat for the other branch: they differ by the template as well."""
    letters = models.Letters()
    mixed = textguide.CFG(2.0, negative_system="rude")
    if case.seed % 2:
        textguide.score(model, letters, ["abc"], ["d"], mixed)
    else:
        textguide.generate(model, letters, ["abc"], mixed, max_new_tokens=1)
    raise Differs("a text and a chat were compared")


WAYS: dict[str, Callable[..., None]] = {
    "generate": _generate,
    "speculation": _speculation,
    "stream": _stream,
    "score": _score,
    "custom_generate": _custom_generate,
    "drop_in": _drop_in,
    "beams": _beams,
    "lookup": _lookup,
    "chat": _chat,
}


def _processors(case: Case, model: Any, combined: Any, others: Any) -> list[Any]:
    if combined is None:
        return []
    letters = models.Letters(case.pad_is_bos)
    return [GuidanceLogitsProcessor(model, combined, tokenizer=letters, models=others or None, horizon=case.new)]


def _prompts(case: Case, model: Any) -> Any:
    if not case.side:
        return case.prompts
    ids, mask = _padded(case.prompts, model.generation_config.pad_token_id, case.side)
    return {"input_ids": ids, "attention_mask": mask}


# -- comparisons -----------------------------------------------------------------------------------------------------


class _Watch:
    """The guided distributions of every step, by row."""

    def __init__(self) -> None:
        self.rows: dict[tuple[int, int], Tensor] = {}
        self.size = 0

    def __call__(self, view: Any) -> None:
        for number, row in enumerate(view.samples):
            self.rows[row, view.index] = view.guided[number].clone()
            self.size = max(self.size, row + 1)


def _check_watch(case: Case, truth: Truth, watch: _Watch, rows: Sequence[Sequence[int]]) -> None:
    for (row, step), distribution in watch.rows.items():
        if step < len(rows[row]):
            right = truth.log_probs(_row_of(case, row, len(rows)), rows[row][:step])
            _close(case, truth, distribution, right, f"distribution of row {row}, token {step}")


def _close(case: Case, truth: Truth, value: Tensor, right: Tensor, where: str, factor: float = 1.0) -> None:
    apart = difference(value, right)
    limit = truth.tolerance * factor
    if case.rule in ("contrastive", "nag", "apg") or case.classifier:
        limit *= 5
    if case.classifier and apart > limit and bool((value.isneginf() != right.isneginf()).any()):
        return  # candidates with equal probabilities
    if not apart <= limit:
        raise Differs(f"{where}: {apart:.3g} nats (tolerance {limit:.2g})")


def _same(case: Case, truth: Truth, rows: Sequence[Sequence[int]], expected: Any) -> None:
    """The tokens are those of transformers' own loop, up to a near-tie."""
    sequences = expected.sequences
    rights = _until_end(case, sequences[:, sequences.shape[1] - len(expected.scores) :].tolist())
    if len(rows) != len(rights):
        raise Differs(f"{len(rows)} rows instead of {len(rights)}")
    for row, (tokens, right) in enumerate(zip(rows, rights, strict=True)):
        if list(tokens) == right:
            continue
        step = next((n for n, (a, b) in enumerate(zip(tokens, right, strict=False)) if a != b), None)
        if step is None:
            raise Differs(f"row {row} has {len(tokens)} tokens instead of {len(right)}")
        if case.dtype == "bfloat16":
            continue  # distributions are compared; rounding changes tokens
        scores = expected.scores[step][row]
        gap = float(scores[right[step]] - scores[tokens[step]])
        if not case.samples and gap <= 5 * truth.tolerance:
            continue
        raise Differs(f"row {row}, token {step}: {tokens[step]} instead of {right[step]} (score {gap:.3g} lower)")


def _until_end(case: Case, rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Tokens up to and including the end token."""
    ends = case.options.get("eos_token_id") or []
    cut = []
    for row in rows:
        place = next((n for n, token in enumerate(row) if token in ends), len(row) - 1)
        cut.append(list(row[: place + 1]))
    return cut


def _row_of(case: Case, row: int, rows: int) -> int:
    return row * len(case.prompts) // rows


# -- refusals --------------------------------------------------------------------------------------------------------


def _crosses(case: Case) -> bool:
    """Whether a branch grows over the length at which rotary embeddings change."""
    if case.model not in models.SWITCHES:
        return False
    # A run with guesses may read one token after the last new one.
    new = max([case.new + (case.entry == "lookup"), *map(len, case.continuations)])
    texts = [*case.prompts, *(case.negatives or []), *([[0]] if case.negatives is None else [])]
    return any(len(text) <= models.SWITCH < len(text) + new - 1 for text in texts)


EXPECTED: tuple[tuple[str, Callable[[Case], bool]], ...] = (
    (r"keeps state outside|slides a window|RecurrentGemma", lambda case: case.model == "recurrent_gemma"),
    (r"not causal", lambda case: case.model == "gemma3-bidirectional"),
    (r"rotary embeddings", _crosses),
    (r"positions; shorten", lambda case: case.model == "llama-dynamic"),
    (r"\d+ positions", lambda case: case.model == "llama-dynamic"),
    (r"guidance_scale", lambda case: "guidance_scale" in case.options),
    (r"use_cache=False", lambda case: case.options.get("use_cache") is False),
    (
        r"cache_implementation|needs one for every length|static|Static",
        lambda case: "cache_implementation" in case.options,
    ),
    (r"speculation=", lambda case: case.entry == "speculation" and case.model in models.RECURRENT),
    (r"needs a decoder-only transformer|has no list of \d layers", lambda case: case.rule == "dola"),
    (r"encoder-decoder|reads the prompt", lambda case: case.is_encoder_decoder),
    (r"negative_system", lambda case: case.entry == "chat"),
    (r"classifier", lambda case: bool(case.classifier)),
    (r"begins with token .*, which pads|ends with token", lambda case: case.pad_is_bos),
    (r"does not support assisted|is stateful|cannot drop|prompt_lookup", lambda case: case.entry == "lookup"),
)
"""Refusals, and the cases in which they are true."""


def _refusal(case: Case, error: ValueError) -> Outcome:
    text = _line(error)
    if "site-packages/transformers" in traceback.extract_tb(error.__traceback__)[-1].filename:
        return Outcome("invalid", text)
    for number, (pattern, holds) in enumerate(EXPECTED):
        if re.search(pattern, text) and holds(case):
            return Outcome("refused", EXPECTED[number][0])
    return Outcome("FINDING", f"refused: {text}")


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _where(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"({frame.filename.rpartition('/')[2]}:{frame.lineno})"

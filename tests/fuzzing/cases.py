"""One case of the fuzzer: drawn at random, written as JSON, made smaller."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .models import BOS, BUILDERS, ENCODER_DECODER, FORBIDDEN, RECURRENT, SWITCH, SWITCHES

ENTRIES = ("generate", "stream", "score", "custom_generate", "drop_in", "beams", "speculation", "lookup", "chat")
_WEIGHTS = (6, 1, 3, 5, 4, 2, 1, 1, 0.3)
DROP_INS = ("drop_in", "beams", "lookup")
BEFORE = {
    "repetition_penalty", "exponential_decay_length_penalty", "sequence_bias", "min_new_tokens", "suppress_tokens",
    "begin_suppress_tokens", "bad_words_ids", "no_repeat_ngram_size", "forced_eos_token_id",
}  # fmt: skip
"""Processors that a logits processor of the user comes after: it guides what they left."""
MASKS = {
    "min_new_tokens", "suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "no_repeat_ngram_size",
    "forced_eos_token_id",
}  # fmt: skip
"""Those that only forbid tokens, which does not change what a rule makes of the others, token by token."""
OWN_DECODING = {"recurrent_gemma", "gemma3-bidirectional"}
"""Models that transformers itself decodes differently from what they read in one pass."""
DYNAMIC = "llama-dynamic"
"""A model with a state outside its cache once it has read more than :data:`.models.SWITCH` tokens."""
OWN_PADDING = {*SWITCHES, "bart-decoder", "roformer"}
"""Models whose padded rows are wrong in transformers' own pass, which is the conditional branch of a drop-in."""


@dataclass(frozen=True)
class Case:
    """What runs.

    Args:
        model: a name of :data:`.models.BUILDERS`.
        entry: one of :data:`ENTRIES`.
        rule: name of the method; empty: none.
        fields: fields of the method.
        negatives: negative prompts, one for all rows or one per row; None: the method's default.
        prompts: token ids of every row.
        new: new tokens.
        options: of transformers' ``generate``.
        continuations: what is scored.
        dtype: of the model.
        mode: ``eval``, ``train``, or ``trained``: a run in training mode came first.
        masked: whether the model forbids some tokens.
        pad_is_bos: whether the begin token pads.
        side: where an encoding of the prompts is padded; empty: prompts are lists.
        classifier: weight of a classifier; 0: none.
        seed: of the draws.
    """

    model: str = "llama"
    entry: str = "generate"
    rule: str = "cfg"
    fields: dict[str, Any] = field(default_factory=dict)
    negatives: list[list[int]] | None = None
    prompts: list[list[int]] = field(default_factory=lambda: [[5, 9, 33]])
    new: int = 3
    options: dict[str, Any] = field(default_factory=dict)
    continuations: list[list[int]] = field(default_factory=list)
    dtype: str = "float32"
    mode: str = "eval"
    masked: bool = False
    pad_is_bos: bool = False
    side: str = ""
    classifier: float = 0.0
    seed: int = 0

    def to_json(self) -> str:
        """One line that :func:`from_json` reads; fields with their defaults are left out."""
        usual = asdict(Case(prompts=[]))
        return json.dumps({name: value for name, value in asdict(self).items() if value != usual[name]})

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn."""
        return bool(self.options.get("do_sample"))

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether an encoder reads the prompts."""
        return self.model in ENCODER_DECODER


def from_json(line: str) -> Case:
    """The case of a line."""
    return Case(**json.loads(line))


def draw(number: int, seed: int) -> Case:
    """Case ``number`` of the sequence ``seed``."""
    rng = random.Random(f"{seed} {number}")
    entry = rng.choices(ENTRIES, _WEIGHTS)[0]
    model = rng.choice(list(BUILDERS))
    if entry == "chat":
        return Case(model="llama", entry=entry, fields={"scale": 2.0}, prompts=[[5, 6, 7]], seed=number)
    pad_is_bos = model not in ENCODER_DECODER and rng.random() < 0.25
    rows = rng.choice((1, 1, 2, 2, 3))
    if entry == "lookup" or (entry in DROP_INS and model in OWN_PADDING):
        rows = 1
    prompts = [_prompt(rng, pad_is_bos) for _ in range(rows)]
    dtype = "bfloat16" if rng.random() < 0.15 else "float32"
    rule = rng.choices(("cfg", "", "apg", "nag", "contrastive", "dola", "formula"), (10, 2, 1.5, 1, 2, 1, 1))[0]
    if dtype == "bfloat16" and rule:
        rule = "cfg"
    if model in ENCODER_DECODER and rule == "contrastive":
        rule = "apg"
    if entry in DROP_INS and model == "recurrent_gemma":
        entry = "generate"
    if entry in DROP_INS or model in OWN_DECODING:
        rule = rule or "cfg"  # without guidance, transformers alone decodes
    case = Case(
        model=model,
        entry=entry,
        rule=rule,
        fields=_fields(rng, rule),
        negatives=_negatives(rng, rule, rows),
        prompts=prompts,
        new=rng.randint(1, 5),
        dtype=dtype,
        mode=rng.choices(("eval", "train", "trained"), (8, 1, 1))[0],
        masked=model not in ENCODER_DECODER and rng.random() < 0.15,
        pad_is_bos=pad_is_bos,
        seed=rng.randrange(1000),
    )
    if case.fields.get("scale") == 1.0 and (entry in DROP_INS or model in OWN_DECODING):
        case = replace(case, fields={**case.fields, "scale": 1.5})
    if rng.random() < 0.1 and rule in ("", "cfg") and dtype == "float32" and entry not in ("lookup", "speculation"):
        case = replace(case, classifier=rng.choice((2.0, -1.5)))
    if entry == "generate" and rng.random() < 0.2:
        case = replace(case, side=rng.choice(("left", "right")))
    case = replace(
        case,
        prompts=[_shortened(row, model, 5) for row in prompts],
        negatives=case.negatives and [_shortened(row, model, 5) for row in case.negatives],
    )
    if entry == "score":
        lengths = [rng.randint(1, 4) for _ in prompts]
        return replace(case, continuations=[[rng.randrange(3, FORBIDDEN) for _ in range(n)] for n in lengths])
    return replace(case, options=_options(rng, case))


def _prompt(rng: random.Random, starts: bool) -> list[int]:
    length = rng.choice((1, 2, 3, 4, 5, 6, 8, SWITCH - 2, SWITCH, SWITCH + 2))
    tokens = [rng.randrange(3, FORBIDDEN) for _ in range(length)]
    return [BOS, *tokens[1:]] if starts or rng.random() < 0.2 else tokens


def _shortened(tokens: list[int], model: str, new: int) -> list[int]:
    """A prompt that the model reads in the same way whatever it read before."""
    if model == DYNAMIC:
        return tokens[: SWITCH - new]
    if model == "recurrent_gemma" and len(tokens) == 1:
        return [*tokens, 7]
    return tokens


def _fields(rng: random.Random, rule: str) -> dict[str, Any]:
    if rule in ("", "formula"):
        return {}
    if rule == "contrastive":
        return {"alpha": rng.choice((0.0, 0.1)), "beta": rng.choice((0.5, 1.0))}
    if rule == "dola":
        return {}
    fields: dict[str, Any] = {"scale": rng.choice((0.5, 1.5, 2.0, 3.0, -1.0, 1.0) if rule == "cfg" else (1.5, 3.0))}
    if rule == "cfg" and rng.random() < 0.3:
        fields["schedule"] = rng.choice(("linear", "cosine", "linear-decreasing", "v-shape"))
    if rule == "cfg" and rng.random() < 0.25:
        fields["start"] = rng.choice((0.0, 0.3))
        fields["stop"] = rng.choice((0.5, 1.0))
    if rule == "cfg" and rng.random() < 0.1:
        fields["max_scale"] = 1.7
    return fields


def _negatives(rng: random.Random, rule: str, rows: int) -> list[list[int]] | None:
    if rule not in ("cfg", "apg", "nag") or rng.random() < 0.35:
        return None
    return [_prompt(rng, False) for _ in range(rng.choice((1, rows)))]


def _options(rng: random.Random, case: Case) -> dict[str, Any]:
    """Up to three options of ``generate`` that the way in accepts."""
    options: dict[str, Any] = {}
    if case.entry in ("lookup", "speculation"):
        return {"do_sample": True, "temperature": 1.2} if case.entry == "speculation" and rng.random() < 0.3 else {}
    if case.entry != "beams" and rng.random() < 0.45:
        options["do_sample"] = True
        warpers = {
            "temperature": rng.choice((0.7, 1.5)), "top_k": rng.choice((1, 5, 20)), "top_p": rng.choice((0.3, 0.9)),
            "min_p": 0.1, "typical_p": 0.7, "epsilon_cutoff": 0.02, "eta_cutoff": 0.05,
        }  # fmt: skip
        for name in rng.sample(list(warpers), rng.randint(0, 2)):
            options[name] = warpers[name]
        if rng.random() < 0.2 and case.entry != "stream":
            options["num_return_sequences"] = 2
    if case.entry == "beams":
        options["num_beams"] = rng.choice((2, 3))
        options["length_penalty"] = rng.choice((0.0, 1.0, 2.0))
        options["early_stopping"] = rng.choice((True, False))
    processors = {
        "repetition_penalty": rng.choice((0.7, 1.6)), "no_repeat_ngram_size": rng.choice((1, 2)),
        "suppress_tokens": [5, 9, 20, 21], "begin_suppress_tokens": [7, 8, 30, 33],
        "bad_words_ids": [[6], [9, 12], [22]], "forced_eos_token_id": EOS_LIKE, "min_new_tokens": 2,
        "eos_token_id": rng.choice(([2, 11, 17, 25, 30], [2, *range(3, 36, 2)])),
        "sequence_bias": [[[10], 3.0], [[12, 5], -4.0]], "renormalize_logits": True, "remove_invalid_values": True,
        "exponential_decay_length_penalty": [1, 1.5],
    }  # fmt: skip
    for name in rng.sample(list(processors), rng.choice((0, 0, 1, 1, 2))):
        options[name] = processors[name]
    if "exponential_decay_length_penalty" in options or "min_new_tokens" in options:
        options.setdefault("eos_token_id", [2, 11, 17])
    if rng.random() < 0.04:
        options["guidance_scale"] = 2.0
    if rng.random() < 0.03:
        options["use_cache"] = False
    if rng.random() < 0.03 and case.model != "gpt_neo":  # transformers' own GPT-Neo attends to places still free
        options["cache_implementation"] = "static"
    if case.entry == "generate" and rng.random() < 0.2:
        options["batch_size"] = rng.choice((1, 2))
    if case.entry in DROP_INS:
        elementwise = case.entry == "drop_in" and case.rule == "cfg" and not case.classifier
        for name in BEFORE - (MASKS if elementwise else set()):
            options.pop(name, None)
    if case.rule != "cfg" or case.fields["scale"] == 1.0:
        options.pop("guidance_scale", None)
    return options


EOS_LIKE = 2


def smaller(case: Case) -> Iterator[Case]:
    """Simpler cases, the largest steps first."""
    for row in range(len(case.prompts)) if len(case.prompts) > 1 else ():
        kept = [n for n in range(len(case.prompts)) if n != row]
        negatives = case.negatives
        if negatives is not None and len(negatives) == len(case.prompts):
            negatives = [negatives[n] for n in kept]
        yield replace(
            case,
            prompts=[case.prompts[n] for n in kept],
            negatives=negatives,
            continuations=[case.continuations[n] for n in kept] if case.continuations else [],
        )
    for name in case.options:
        yield replace(case, options={key: value for key, value in case.options.items() if key != name})
    for name in case.fields:
        yield replace(case, fields={key: value for key, value in case.fields.items() if key != name})
    usual = Case()
    for name in ("mode", "dtype", "masked", "pad_is_bos", "side", "classifier", "seed", "negatives"):
        if getattr(case, name) != getattr(usual, name):
            yield replace(case, **{name: getattr(usual, name)})
    if case.new > 1:
        yield replace(case, new=case.new - 1)
    for name in ("prompts", "continuations", "negatives"):
        rows = getattr(case, name) or []
        for row, tokens in enumerate(rows):
            if len(tokens) > 1:
                yield replace(case, **{name: [*rows[:row], tokens[1:], *rows[row + 1 :]]})
    if case.model not in ("llama", *RECURRENT, *ENCODER_DECODER):
        yield replace(case, model="llama")

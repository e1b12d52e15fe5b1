"""Requests for the serving benchmarks, and the answer of a transformers model to each."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from timing import progress
from torch import Tensor
from transformers import LogitsProcessor

import textguide
from textguide import AWRS, CFG
from textguide.constraints import Regex
from textguide.engine.branch_inputs import branch_rows
from textguide.guidance import Contrast, Formula, Guidance, Step, as_guidance, parts_of, split
from textguide.guidance.algebra import log_softmax
from textguide.step.guided_step import guided_log_probs
from textguide.support.errors import NoParticleLeftWarning
from textguide.support.files import write_json

STARTS = (
    "The dragon flew over Paris, France,",
    "Once upon a time",
    "The capital of Germany is",
    "Water boils at",
    "My favourite recipe starts with",
    "In the year 1969, the first",
    "Dear Sir or Madam,",
    "def fibonacci(n):",
    "The committee met on Tuesday to discuss the future of the old railway station, and",
    "To be a good teacher, one must",
)
FILLER = (
    "A baker came out of his shop with flour on his hands, and a child pointed at the wings. The mayor had seen many "
    "things in his time. Nobody spoke for a while. Then the rain began, first softly, and after some minutes so hard "
    "that the market had to close. "
)
NEGATIVES = (
    None,
    "The weather report for today:",
    "A list of numbers: one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve,",
    "The",
)
PATTERNS = (
    r" [a-z]{1,9}( [a-z]+){0,5}[.!]",
    r" (in|on|at) (the )?[A-Z][a-z]+(, [A-Z][a-z]+)?",
    r"\n?[0-9]{1,4}( [a-z]+){1,3}",
)
SCHEDULES = ("linear", "cosine-decreasing", "v-shape")


@dataclass(frozen=True)
class Spec:
    """One request.

    A guided one has a ``scale``, or a guidance as JSON in ``guidance_json``; a constrained one has a ``pattern``.
    """

    prompt: str
    tokens: int
    scale: float | None = None
    negative: str | None = None
    schedule: str = "constant"
    stop_at: float = 1.0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | None = None
    repetition_penalty: float = 1.0
    pattern: str | None = None
    guidance_json: str | None = None
    logprobs: int | None = None
    adapter: str | None = None
    negative_lora: str | None = None

    @property
    def is_plain(self) -> bool:
        """Whether vLLM's own sampler draws its tokens."""
        return self.scale is None and self.guidance_json is None and self.pattern is None

    @property
    def method(self) -> str:
        """The names of the methods of its guidance."""
        names = [part.name for part in parts_of(self.guidance)]
        if self.negative_lora is not None:
            names = ["cfg of adapters"]
        if self.pattern is not None:
            names.append("awrs")
        return " + ".join(names) or "plain"

    @property
    def guidance(self) -> Guidance | None:
        """The guidance that the request describes, without its pattern."""
        if self.guidance_json is not None:
            return as_guidance(json.loads(self.guidance_json))
        if self.scale is None:
            return None
        if self.negative_lora is not None:
            read = self.negative_lora if self.negative is None else f"{self.negative_lora}', '{self.negative}"
            return Formula(f"{self.scale}*cond - {self.scale - 1}*M('{read}')")
        return CFG(self.scale, self.negative, schedule=self.schedule, stop=self.stop_at)

    def extra(self) -> dict[str, Any] | None:
        """vLLM's extra arguments."""
        if self.guidance_json is not None:
            return {"guidance": json.dumps(self._parts(json.loads(self.guidance_json)))}
        extra: dict[str, Any] = {} if self.pattern is None else {"awrs_regex": self.pattern}
        if self.scale is None:
            return extra or None
        extra["guidance_scale"] = self.scale
        if self.negative_lora is not None:
            extra["negative_lora"] = self.negative_lora
        if self.negative is not None:
            extra["negative_prompt"] = self.negative
        if self.schedule != "constant":
            extra["guidance_schedule"] = self.schedule
        if self.stop_at != 1.0:
            extra["guidance_stop"] = self.stop_at
        return extra

    def _parts(self, guidance: Any) -> list[Any]:
        """The parts of a guidance, with the pattern as the last one."""
        parts = [guidance] if isinstance(guidance, dict) else list(guidance)
        if self.pattern is not None:
            constraint = {"kind": "regex", "pattern": self.pattern, "engine": "xgrammar"}
            parts.append({"method": "awrs", "constraint": constraint})
        return parts

    def sampling(self) -> dict[str, Any]:
        """The arguments of vLLM's ``SamplingParams``."""
        names = ("temperature", "top_p", "top_k", "min_p", "seed", "stop", "repetition_penalty", "logprobs")
        return {
            "max_tokens": self.tokens,
            **{name: getattr(self, name) for name in names},
            "include_stop_str_in_output": True,
            "extra_args": self.extra(),
        }


# -- drawing requests --------------------------------------------------------------------------------------------------

Make = Callable[[random.Random, str], Any]
"""Draws a setting of a method for a prompt, as JSON values."""


def methods(models: bool = False) -> dict[str, Make]:
    """Every method that runs inside vLLM, as a function that draws a setting for a prompt.

    Args:
        models: include the methods that need another model, which is called ``amateur``.
    """
    makers = {
        "cfg": scaled("cfg", 1.2, 1.5, 3.0),
        "apg": scaled("apg", 2.0, 6.0, parallel=0.2, max_norm=4.0),
        "nag": scaled("nag", 3.0, 8.0),
        "beta-cfg": scaled("beta-cfg", 1.5, 2.5),
        "annealed": scaled("annealed", 1.5, 3.0),
        "dynamic": scaled("dynamic", 3.0, budget=0.3),
        "independent-condition": scaled("independent-condition", 1.5, 2.0),
        "token-perturbation": scaled("token-perturbation", 1.5, 2.0),
        "instruction-contrastive": scaled("instruction-contrastive", 1.5, 2.0),
        "context-aware": context_aware,
        "formula of prompts": formula(
            "2*cond - 0.5*last - 0.5*P('The weather report for today:')",
            "max(cond, P('Once upon a time')) - 0.3*last",
            "min(cond, P('Dear Sir or Madam,')) + 0.1*P('def main():') - 0.1*P('The')",
            "1.5*cond",
        ),
        "caif": classifier,
    }
    if models:
        makers["contrastive"] = contrastive
        makers["dexperts"] = lambda draw, prompt: dict(DEXPERTS)
        makers["genarm"] = lambda draw, prompt: {"method": "genarm", "reward_model": "amateur", "beta": 2.0}
        makers["formula of models"] = formula(
            "1.4*cond - 0.4*M('amateur')", "cond + 0.2*M('amateur', 'The') - 0.2*last"
        )
    return makers


DEXPERTS = {"method": "dexperts", "alpha": 0.5, "expert": "amateur", "anti_expert": None, "top_p": 0.9}


def scaled(name: str, *scales: float, **more: Any) -> Make:
    """A method with a scale, sometimes with a schedule or a window."""

    def make(draw: random.Random, prompt: str) -> dict[str, Any]:
        values = {"method": name, "scale": draw.choice(scales), **more}
        if draw.random() < 0.3:
            values["schedule"] = draw.choice(SCHEDULES)
        if draw.random() < 0.2:
            values["stop" if draw.random() < 0.5 else "start"] = 0.5
        if issubclass(Guidance.registry[name], Contrast):
            values["negative_prompt"] = draw.choice(NEGATIVES)
        return values

    return make


def formula(*expressions: str) -> Make:
    """One of some formulas."""
    return lambda draw, prompt: {"method": "formula", "expression": draw.choice(expressions)}


def context_aware(draw: random.Random, prompt: str) -> dict[str, Any]:
    """Two words of the prompt are the context."""
    words = prompt.split(" ")
    start = draw.randrange(max(1, len(words) - 3))
    return {"method": "context-aware", "scale": 1.5, "context": " ".join(words[start : start + 2])}


def classifier(draw: random.Random, prompt: str) -> Any:
    """A classifier, alone or after a rule."""
    target = draw.choice(("positive", "negative"))
    caif = {"method": "caif", "classifier": "sentiment", "target": target, "weight": draw.choice((2.0, 8.0))}
    caif |= {"top_k": 20, "every": draw.choice((1, 1, 2))}
    return draw.choice((caif, [{"method": "cfg", "scale": 1.5}, caif], [{"method": "nag", "scale": 3.0}, caif]))


def contrastive(draw: random.Random, prompt: str) -> dict[str, Any]:
    """Contrastive decoding in both of its forms."""
    return {"method": "contrastive", "beta": draw.choice((None, 0.5)), "prompt_free": draw.random() < 0.3}


def mix(count: int, seed: int = 0, makers: dict[str, Make] | None = None, adapters: Sequence[str] = ()) -> list[Spec]:
    """A mixture in which nearly every request differs from every other.

    Args:
        count: how many.
        seed: the same seed makes the same requests.
        makers: of :func:`methods`: guided requests carry one of them, in turn.
        adapters: names of adapters, which requests run with, and guide against.
    """
    draw = random.Random(seed)
    specs = []
    for number in range(count):
        prompt = draw.choice(STARTS)
        is_guided = draw.random() < (0.85 if makers else 0.65)
        is_drawn = draw.random() < 0.4
        # With guidance or without it, vLLM's runner for CPUs stops if it reads the prompt of a plain, seeded request in
        # chunks: PyTorch cannot rewind a CPU generator. Those prompts stay short here; ours do not have this limit.
        if draw.random() < 0.4 and (is_guided or not is_drawn):
            prompt = FILLER[: draw.randrange(40, len(FILLER))].rsplit(" ", 1)[0] + ". " + prompt
        values: dict[str, Any] = {"prompt": prompt, "tokens": draw.choice((1, 5, 12, 20, 28))}
        if is_guided:
            make = list(makers.values())[number % len(makers)] if makers else None
            values |= _guided(draw, prompt, make)
        if is_drawn:
            values |= _drawn(draw, number, is_guided)
        if draw.random() < 0.15 and "pattern" not in values:
            values["stop"] = draw.choice((".", "the", "\n"))
        if draw.random() < 0.1:
            values["repetition_penalty"] = 1.2
        elif is_guided and "pattern" not in values and number % 3 == 0:
            values["logprobs"] = 0
        values |= _adapted(draw, adapters, "scale" in values)
        specs.append(Spec(**values))
    return specs


def _guided(draw: random.Random, prompt: str, make: Make | None) -> dict[str, Any]:
    """A guidance as JSON by ``make``, or classifier-free guidance by vLLM's own names."""
    if make is not None:
        return {"guidance_json": json.dumps(make(draw, prompt))}
    values = {"scale": draw.choice((1.2, 1.5, 2.0, 3.0)), "negative": draw.choice(NEGATIVES)}
    if draw.random() < 0.2:
        values["schedule"] = draw.choice(SCHEDULES)
    if draw.random() < 0.15:
        values["stop_at"] = 0.5
    return values


def _drawn(draw: random.Random, number: int, is_guided: bool) -> dict[str, Any]:
    """Sampling, sometimes under a pattern."""
    values = {"temperature": draw.choice((0.7, 1.0)), "seed": number}
    last = {"min_p": 0.05} if is_guided else {"top_k": 20}
    values |= draw.choice(({}, {"top_p": 0.9}, {"top_k": 40}, last))
    if draw.random() < 0.4:
        values |= {"pattern": draw.choice(PATTERNS), "tokens": 28}
    return values


def _adapted(draw: random.Random, adapters: Sequence[str], has_scale: bool) -> dict[str, Any]:
    """An adapter to run with, and another one to guide against; nothing if there are no adapters."""
    if not adapters:
        return {}
    adapter = draw.choice((None, *adapters))
    if not has_scale or draw.random() >= 0.6:
        return {"adapter": adapter}
    others = [name for name in ("base", *adapters) if name != (adapter or "base")]
    return {"adapter": adapter, "negative_lora": draw.choice(others), "schedule": "constant", "stop_at": 1.0}


# -- the answers of a transformers model -------------------------------------------------------------------------------


class AsVLLMDraws(LogitsProcessor):
    """Chooses the token that vLLM's sampler for CPUs, which has its own noise, draws for a plain request."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.generator = torch.Generator().manual_seed(spec.seed or 0)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

        scores = scores.float() / self.spec.temperature
        top_k = torch.tensor([self.spec.top_k]) if self.spec.top_k else None
        top_p = torch.tensor([self.spec.top_p]) if self.spec.top_p < 1 else None
        scores = apply_top_k_top_p(scores.clone(), top_k, top_p)
        seed = torch.randint(0, 2**31, (1,), generator=self.generator, dtype=torch.long)
        token = int(torch.ops._C.fused_gumbel_argmax(scores.contiguous(), seed))
        return torch.full_like(scores, -torch.inf).index_fill_(1, torch.tensor([token]), 0.0)


Answer = tuple[list[int], float | None, float | None]
"""Token ids, the log-weight of a text that matches the pattern, and the text's log-likelihood if the request has
``logprobs``."""


def reference(model: Any, tokenizer: Any, spec: Spec, models: Mapping[str, Any] | None = None) -> Answer:
    """The answer of the transformers path to one request; ``models`` are other models and adapters by name."""
    options: dict[str, Any] = {}
    if spec.repetition_penalty != 1.0:
        options["repetition_penalty"] = spec.repetition_penalty
    if spec.temperature > 0 and spec.is_plain:
        from vllm.platforms import current_platform

        current_platform.import_kernels()  # registers the operator; the module's name depends on the processor
        options["logits_processor"] = [AsVLLMDraws(spec)]
    elif spec.temperature > 0:
        options |= {"temperature": spec.temperature, "top_k": spec.top_k, "top_p": spec.top_p, "seed": spec.seed}
        if spec.min_p:
            options["min_p"] = spec.min_p
    if spec.stop is not None:
        options["stop"] = spec.stop
    guidance: Any = spec.guidance
    if spec.pattern is not None:
        guidance = [*parts_of(guidance), AWRS(Regex(spec.pattern, engine="xgrammar"))]
    model = model_of(spec, model, models)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoParticleLeftWarning)
        out = textguide.generate(
            model, tokenizer, [spec.prompt], guidance, max_new_tokens=spec.tokens, models=models, **options
        )
    if spec.pattern is None:
        return out.new_tokens[0], None, None if spec.logprobs is None else float(out.log_likelihood[0])
    if out.deaths[0] is not None:  # a server ends such a text with an end token
        return [*out.new_tokens[0], tokenizer.eos_token_id], None, None
    return out.new_tokens[0], float(out.log_weights[0]), None


def model_of(spec: Spec, model: Any, models: Mapping[str, Any] | None) -> Any:
    """The model that a request runs with: ``model``, or an adapter of it."""
    return model if spec.adapter is None else (models or {})[spec.adapter]


def references(
    model: Any,
    tokenizer: Any,
    specs: Sequence[Spec],
    cache: Path | None = None,
    models: Mapping[str, Any] | None = None,
) -> list[Answer]:
    """:func:`reference` of every request; ``cache`` is a file that stores them from run to run."""
    known: dict[str, Answer] = {}
    if cache is not None and cache.is_file():
        known = json.loads(cache.read_text())
    answers = []
    for spec in progress(specs, "transformers path"):
        key = json.dumps(asdict(spec), sort_keys=True)
        if key not in known:
            known[key] = reference(model, tokenizer, spec, models)
        tokens, weight, likelihood = known[key]
        answers.append((tokens, weight, likelihood))
    if cache is not None:
        write_json(cache, known)
    return answers


@torch.no_grad()
def margin(
    model: Any,
    tokenizer: Any,
    spec: Spec,
    written: list[int],
    ours: int,
    theirs: int,
    models: Mapping[str, Any] | None = None,
) -> float:
    """How much more likely guidance makes the token ``ours`` than ``theirs`` after ``written``, in nats.

    For a sampled token this is the difference of the log-probabilities only, without the noise of the draw or a
    classifier.
    """
    guidance = split(spec.guidance).branching
    model = model_of(spec, model, models)
    ids = tokenizer(spec.prompt).input_ids
    rows = [(model, ids)]
    if guidance is not None:
        prompts = branch_rows(guidance, cond=[ids], tokenizer=tokenizer, prompts=[spec.prompt])
        for branch, (row,) in zip(guidance.branches, prompts, strict=True):
            rows.append(((models or {}).get(branch.model, model), row))
    logp = torch.stack([log_softmax(one(torch.tensor([row + written])).logits[0, -1:]) for one, row in rows])
    step = Step.at(len(written), spec.tokens)
    guided = logp[0]
    if guidance is not None and guidance.active(step):
        guided = guided_log_probs(guidance, logp, step)
    return float(guided[0, ours] - guided[0, theirs])

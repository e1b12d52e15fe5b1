"""A user's script with every public name of textguide; ``tests/test_package.py`` checks its types in strict mode.

It is never run: its models and files need not exist.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

import textguide
from textguide import (
    ACFG,
    AWRS,
    CAIF,
    CFG,
    AWRSLogitsProcessor,
    Branched,
    CAIFLogitsProcessor,
    CFGLogitsProcessor,
    DistillResult,
    DistillSettings,
    EAGer,
    Effect,
    Evidence,
    Explanation,
    FeynmanKac,
    GenerateResult,
    Guidance,
    GuidanceLogitsProcessor,
    GuidedDecoding,
    Lessons,
    LMGuidance,
    MaskedDiffusionCFGHook,
    PowerSampling,
    Reward,
    ScoreResult,
    Speculation,
    SpeculationReport,
    StreamChunk,
    TokenPrior,
    __version__,
    caption,
    distill,
    eager,
    estimate_prior,
    evidence,
    explain,
    generate,
    guided_decoding,
    load,
    score,
    stream,
    vllm_engine,
)
from textguide.constraints import Regex

PROMPTS = ["The dragon flew over Paris.", "The river"]


def rules() -> list[Guidance]:
    """One guidance of each class at the top of the package."""
    digits = Regex("[0-9]+")
    cfg: CFG = CFG(1.5, negative_prompt="The dragon")
    return [
        cfg,
        ACFG(1.5),
        AWRS(digits, particles=4),
        CAIF("sentiment", "positive", 5.0),
        EAGer(2.2, max_branches=4),
        FeynmanKac(particles=4),
        LMGuidance(2.0),
        PowerSampling(2.0, 4),
        Reward("sentiment", 5.0),
        TokenPrior(2.0, prior={5: 0.1}),
    ]


def own_prior() -> TokenPrior:
    """A constant branch that is estimated from texts."""
    model, tokenizer = load("smollm2")
    return TokenPrior(2.0, prior=estimate_prior(model, tokenizer, PROMPTS))


def texts() -> GenerateResult:
    """Generation, with what guidance did, and how speculation went."""
    model, tokenizer = load("smollm2")
    with Lessons():
        result: GenerateResult = generate(model, tokenizer, PROMPTS, CFG(1.5), speculation=Speculation("lookup"))
    lines: list[str] = result.texts
    effect: Effect = result.effect
    report: SpeculationReport | None = result.speculation
    print(__version__, lines, effect, report)
    return result


def pieces() -> Iterator[str]:
    """A stream, and texts that fork."""
    model, tokenizer = load("smollm2", dtype="float32")
    chunk: StreamChunk
    for chunk in stream(model, tokenizer, PROMPTS, CFG(1.5)):
        yield chunk.text
    branched: Branched = eager(model, tokenizer, PROMPTS)
    for row in branched.texts:
        yield from row


def scores() -> float:
    """Scores, an explanation, and the probability that a text fits a constraint."""
    model, tokenizer = load("smollm2")
    result: ScoreResult = score(model, tokenizer, PROMPTS, [" a", " b"], [None, CFG(1.5)])
    likelihood: torch.Tensor = result.log_likelihood
    explanation: Explanation = explain(model, tokenizer, PROMPTS[0], CFG(1.5))
    explanation.save_html("explanation.html")
    mass: Evidence = evidence(model, tokenizer, PROMPTS[0], AWRS(Regex("[a-z ]+")))
    return likelihood.sum().item() + mass.mean[0]


def inside_transformers() -> None:
    """The ways into ``model.generate`` and into loops of others."""
    model, tokenizer = load("smollm2")
    inputs = tokenizer(PROMPTS[0], return_tensors="pt")
    decoding: GuidedDecoding = guided_decoding(CFG(1.5), tokenizer=tokenizer)
    model.generate(**inputs, custom_generate=decoding)
    for processor in (
        GuidanceLogitsProcessor(CFG(1.5), model),
        CFGLogitsProcessor(1.5, model),
        AWRSLogitsProcessor(AWRS(Regex("[a-z]+")), tokenizer),
        CAIFLogitsProcessor(CAIF("sentiment", "positive"), tokenizer),
    ):
        model.generate(**inputs, logits_processor=[processor])
    hook = MaskedDiffusionCFGHook(model, tokenizer, ACFG(1.5))
    print(hook)


def others() -> DistillResult:
    """Images, an engine of vLLM, and an adapter."""
    model, processor = textguide.captioning.load("drawn-scenes")
    captions: GenerateResult = caption(model, processor, ["image.png"], CFG(2.0))
    engine = vllm_engine("smollm2")
    answers = generate(engine, None, PROMPTS, CFG(1.5))
    print(captions.texts, answers.texts)
    model, tokenizer = load("smollm2")
    settings = DistillSettings(steps=10)
    print(settings.steps)
    return distill(model, tokenizer, CFG(1.5), "adapter", steps=10)

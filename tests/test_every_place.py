"""The matrix of methods and places, walked: every full cell of it is run, and held against the oracle.

Places that need an environment or models of their own are walked beside their tests: vLLM in ``tests/vllm``, masked
diffusion in ``tests/diffusion``; here it is seen that those walks leave no full cell out.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import textguide
from textguide import CAIF, CFG, GuidanceLogitsProcessor, PowerSampling, Reward
from textguide.classifiers import CausalScorer, CausalState, FunctionClassifier
from textguide.engine import branch_inputs
from textguide.engine.model_views import part
from textguide.guidance import (
    ACFG,
    AWRS,
    VCD,
    Branch,
    BranchGuidance,
    Composed,
    ContextAware,
    CorrSynth,
    EAGer,
    FeynmanKac,
    Guidance,
    Step,
    TimeStepGuidance,
    TokenReweighting,
    ValueGuidance,
    catalogue,
)
from textguide.guidance.canvas_guidance import CanvasGuidance
from textguide.reference import captioning, decoding
from textguide.step.guided_step import guided_log_probs

from .guidance import oracles
from .tiny_folder import make_model, make_tokenizer

oracles.collect()
TEXT = "the cat sat on"
NEW = 6


def vowels(texts: Any) -> list[list[float]]:
    """The share of vowels of a text, as a classifier's log-probabilities."""
    shares = [(1 + sum(letter in "aeiou" for letter in text)) / (2 + len(text)) for text in texts]
    return [[math.log(1 - share), math.log(share)] for share in shares]


OTHERS: dict[str, Guidance] = {
    "cfg": CFG(1.5),
    "acfg": ACFG(2.0),
    "tsg": TimeStepGuidance(2.0),
    "vcd": VCD(),
    "caif": CAIF(FunctionClassifier(vowels, labels=("none", "vowels")), "vowels", 4.0, top_k=20),
    "reward": Reward(lambda texts: [-abs(len(text) - 17) + text.count("e") for text in texts], 2.0),
    "power-sampling": PowerSampling(2.0, particles=3),
    "corrsynth": CorrSynth(2.0),
    "context-aware": ContextAware(2.0, context="cat"),
    "awrs": AWRS("regex:[ -~]{1,5}"),
    "feynman-kac": Composed((CFG(1.5), FeynmanKac(particles=3))),
    "eager": EAGer(0.5, max_branches=3),
    **{name: catalogue.example(kind) for name, kind in Guidance.registry.items() if issubclass(kind, CanvasGuidance)},
}
"""Settings of methods that the conformance tests hold in tests of their own."""


def setting(method: str) -> Guidance:
    """One setting of a method, without prompts of single rows."""
    return OTHERS[method] if method in OTHERS else oracles.SETTINGS[method]


class Tokens(CausalScorer, CausalState):
    """The value of a text, by its last two tokens."""

    name, labels, what = "tokens", ("value",), "value"
    rows: list[list[int]]

    def of(self, ids: Any) -> float:
        return math.sin(3.0 * ids[-1] + ids[-2])

    def values(self, texts: Any) -> torch.Tensor:
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "tokens"}

    def start(self, ids: Any) -> CausalState:
        begun = Tokens()
        begun.rows = [list(row) for row in ids]
        return begun

    def log_prob(self, rows: Any, candidates: torch.Tensor) -> torch.Tensor:
        asked = zip(rows, candidates.tolist(), strict=True)
        return torch.tensor([[[self.of([*self.rows[row], token])] for token in tokens] for row, tokens in asked])

    def current(self, rows: Any) -> torch.Tensor:
        return torch.tensor([[self.of(self.rows[row])] for row in rows])

    def append(self, rows: Any, tokens: Any) -> None:
        for row, token in zip(rows, tokens, strict=True):
            self.rows[row].append(int(token))

    def select(self, index: Any) -> None:
        self.rows = [list(self.rows[row]) for row in index]


OTHERS["value"] = ValueGuidance(Tokens(), 2.0, top_k=20)


class Tiny:
    """A tiny language model with further ones beside it, and what the oracle writes under a guidance."""

    def __init__(self) -> None:
        self.tokenizer = make_tokenizer()
        self.model = make_model(len(self.tokenizer))
        self.ids: list[int] = self.tokenizer(TEXT).input_ids
        self.text_of: Any = partial(self.tokenizer.decode, skip_special_tokens=True)

    def models(self, guidance: Any) -> dict[str, Any]:
        names = sorted({branch.model for branch in getattr(guidance, "branches", ()) if branch.model})
        return {name: make_model(len(self.tokenizer), seed) for seed, name in enumerate(names, start=1)}

    def oracle(self, guidance: Guidance) -> tuple[list[int], list[list[float]]]:
        if isinstance(guidance, TokenReweighting):

            def log_prob(one: Any, text: str) -> float:
                if isinstance(one, Reward):
                    return float(one.model([text])[0])
                if isinstance(one, ValueGuidance):
                    return float(one.value.of(text))
                return float(one.classifier.log_prob([text])[0][one.classifier.index(one.target)])

            def reweigh(distribution: Any, written: Any, index: int, progress: float) -> Any:
                text_of = list if isinstance(guidance, ValueGuidance) else self.text_of
                texts: dict[str, Any] = {"text_of": text_of, "score": log_prob}
                return decoding.reweighed([guidance], distribution, self.ids, written, index, progress, **texts)

            return decoding.generate(self.model, self.ids, None, [], NEW, reweigh=reweigh)
        assert isinstance(guidance, BranchGuidance)
        rows = branch_inputs.branch_rows(guidance, cond=[self.ids], tokenizer=self.tokenizer, prompts=[TEXT])
        return decoding.generate(
            self.model, self.ids, guidance, [row[0] for row in rows], NEW, models=self.models(guidance),
            text_of=self.text_of,
        )  # fmt: skip


TINY = Tiny()


def drawn(guidance: Guidance, **options: Any) -> Any:
    """What ``textguide.generate`` draws; its own tests hold it against enumerations."""
    draws = {"temperature": 1.0, "top_k": 0, "seed": 3, "max_new_tokens": NEW}
    return textguide.generate(TINY.model, TINY.tokenizer, TEXT, guidance, **{**draws, **options})


def in_generate(guidance: Guidance) -> None:
    if isinstance(guidance, CorrSynth):
        out = textguide.generate(TINY.model, TINY.tokenizer, [TEXT, "a dog"], guidance, max_new_tokens=NEW)
        assert out.effect.guided_steps == 2 * NEW
    elif samples(guidance):
        first, again = drawn(guidance), drawn(guidance)
        assert first.new_tokens == again.new_tokens
        assert torch.isfinite(first.log_likelihood).all()
    else:
        out = textguide.generate(
            TINY.model, TINY.tokenizer, TEXT, guidance, max_new_tokens=NEW, models=TINY.models(guidance)
        )
        assert out.new_tokens[0] == TINY.oracle(guidance)[0]


def in_a_processor(guidance: Guidance) -> None:
    inputs: dict[str, Any] = {"input_ids": torch.tensor([TINY.ids]), "max_new_tokens": NEW, "do_sample": False}
    options: dict[str, Any] = {"tokenizer": TINY.tokenizer, "models": TINY.models(guidance), "prompts": TEXT}
    if isinstance(guidance, CorrSynth):
        pair = TINY.tokenizer([TEXT, "a dog ran past"], return_tensors="pt").input_ids
        processor = GuidanceLogitsProcessor(TINY.model, guidance)
        written = TINY.model.generate(pair, logits_processor=[processor], max_new_tokens=NEW, do_sample=False)
        expected = textguide.generate(TINY.model, TINY.tokenizer, pair.tolist(), guidance, max_new_tokens=NEW)
        assert written[:, pair.shape[1] :].tolist() == expected.new_tokens
        return
    expected = drawn(guidance).new_tokens[0] if samples(guidance) else TINY.oracle(guidance)[0]
    generator = torch.Generator().manual_seed(3)
    processor = GuidanceLogitsProcessor(TINY.model, guidance, horizon=NEW, generator=generator, **options)
    written = TINY.model.generate(**inputs, logits_processor=[processor])[0, len(TINY.ids) :].tolist()
    assert written[: len(expected)] == expected


def in_score(guidance: Guidance) -> None:
    tokens, distributions = TINY.oracle(guidance)
    expected = sum(distribution[token] for distribution, token in zip(distributions, tokens, strict=True))
    scored = textguide.score(
        TINY.model, TINY.tokenizer, [TEXT], [tokens], guidance, models=TINY.models(guidance), horizon=NEW
    )
    assert float(scored.log_likelihood) == pytest.approx(expected, abs=1e-3)
    assert bool(scored.is_greedy)


def in_lm_eval(guidance: Guidance) -> None:
    pytest.importorskip("lm_eval", reason="the extra eval is not installed")
    if guidance.name in ("acfg", "tsg") or isinstance(guidance, CanvasGuidance):
        from .diffusion import test_diffusion_lm

        test_diffusion_lm.test_likelihoods_are_those_of_score_for_every_setting()
        return
    from lm_eval.api.instance import Instance

    from textguide.eval import GuidedLM

    def ask(lm: Any, **options: Any) -> str:
        request = Instance(
            "generate_until", {}, (TEXT, {"until": ["\x00"], "max_gen_toks": NEW, **options}), 0, ("t", 0, 1)
        )
        return str(lm.generate_until([request], disable_tqdm=True)[0])

    lm = GuidedLM(
        pretrained=TINY.model, tokenizer=TINY.tokenizer, guidance=guidance, models=TINY.models(guidance), device="cpu"
    )
    if samples(guidance):
        assert ask(lm, do_sample=True, temperature=1.0) == ask(lm, do_sample=True, temperature=1.0)
        return
    tokens, distributions = TINY.oracle(guidance)
    assert ask(lm) == TINY.tokenizer.decode(tokens, skip_special_tokens=True)
    target = torch.tensor([d[t] for d, t in zip(distributions, tokens, strict=True)])
    ((value, greedy),) = lm._loglikelihood_tokens([(None, TINY.ids, tokens)], disable_tqdm=True)
    assert value == pytest.approx(float(target.sum()), abs=1e-3)
    assert greedy


def in_captions(guidance: Guidance) -> None:
    from .captioning import models as captioners
    from .captioning import test_families as families
    from .captioning import test_inside

    model, processor = captioners.build("llava")
    if samples(guidance) or isinstance(guidance, (TokenReweighting, CorrSynth)):
        pictures = [captioners.picture(row) for row in range(2)]
        options = {"temperature": 1.0, "seed": 0, "suppress_tokens": [captioners.IMAGE]}
        first, again = (
            textguide.caption(model, processor, pictures, guidance, max_new_tokens=NEW, **options) for _ in range(2)
        )
        assert first.new_tokens == again.new_tokens
        assert torch.isfinite(first.log_likelihood).all()
        return
    if guidance.name == "vcd":
        test_inside.test_the_image_under_noise_equals_the_oracle("llava", VCD())
        return
    if guidance.name == "lm":
        families.test_language_model_guidance_equals_the_oracle("llava")
        return
    guidance = next((one for one in families.EDITS.values() if one.name == guidance.name), guidance)
    assert isinstance(guidance, BranchGuidance)
    named = {}
    for number, name in enumerate(sorted({branch.model for branch in guidance.branches if branch.model}), start=1):
        named[name] = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in named[name].parameters():
                parameter.mul_(1 - 0.2 * number)
    out = families.decode("llava", guidance, models=named, new=NEW)
    seen, blank = families.conditions("llava", 0, "blank")
    written: list[int] = []
    told = torch.zeros(1 + len(guidance.branches), dtype=torch.float64)
    for step in range(NEW):
        logps = []
        for branch in (Branch(same_prompt=True, view=guidance.view), *guidance.branches):
            if branch.same_prompt:
                inputs = seen
            elif branch.edit is not None:
                inputs = families.edited("llava", guidance, 0)
            elif branch.prompt is not None:
                inputs = {"input_ids": torch.tensor(branch_inputs.rows_of(branch, [[5]], processor.tokenizer))}
            else:
                inputs = blank
            reader = named.get(branch.model, model)
            reader = reader if branch.view is None else part(reader, branch.view)
            logps.append(captioning.next_log_probs(reader, inputs, written))
        at = Step.at(step, NEW, likelihoods=told[:, None], class_log_probs=opinions(guidance, processor, seen, written))
        combined = guided_log_probs(guidance, torch.tensor(logps)[:, None], at)
        written.append(int(combined[0].argmax()))
        told = told + torch.tensor([logp[written[-1]] for logp in logps])
    assert out.sequences[0, -NEW:].tolist() == written


def opinions(guidance: Any, processor: Any, seen: Any, written: list[int]) -> torch.Tensor | None:
    """What the classifier of a guidance that has one says of a caption so far."""
    if not guidance.reads_class_log_probs:
        return None
    ids = [*seen["input_ids"][0].tolist(), *written]
    said = guidance.classifier.log_prob([processor.tokenizer.decode(ids, skip_special_tokens=True)])[0]
    return said[[guidance.classifier.index(label) for label in guidance.classes]][:, None]


def samples(guidance: Guidance) -> bool:
    """Whether tokens are drawn whatever the options say."""
    return not isinstance(guidance, (BranchGuidance, TokenReweighting))


WALKS: dict[str, Callable[[Guidance], None]] = {
    "generate": in_generate,
    "dropin": in_a_processor,
    "score": in_score,
    "lm_eval": in_lm_eval,
    "caption": in_captions,
}
FULL = [(row["method"], place) for row in catalogue.matrix() for place in WALKS if row["cells"][place] is True]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("method", "place"), FULL, ids=lambda value: value)
def test_a_full_cell_is_what_the_oracle_says(method: str, place: str) -> None:
    WALKS[place](setting(method))


@pytest.mark.parametrize(("place", "file"), [("vllm", "vllm"), ("diffusion", "diffusion")])
def test_places_that_are_walked_elsewhere_are(place: str, file: str) -> None:
    path = Path(__file__).parent / file
    texts = [path.read_text()] if path.is_file() else [one.read_text() for one in path.glob("test_*.py")]
    assert any("catalogue.matrix()" in text for text in texts)

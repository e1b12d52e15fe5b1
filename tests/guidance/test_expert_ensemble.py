"""Expert ensembles: Bayes' rule over models, token by token, in every way that a text is written or scored."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import textguide
from textguide import AWRS, EAGer
from textguide.constraints import Regex, Vocabulary
from textguide.guidance import ExpertEnsemble, Guidance, Step
from textguide.guidance.places import check_place
from textguide.guidance.spec import parse
from textguide.models import adapters
from textguide.models.adapters import load_further
from textguide.reference import decoding
from textguide.step.guided_step import guided_log_probs
from textguide.support.errors import ModelUnavailableError

from ..architectures import Tokenizer, build
from .oracles import INF, oracle, settings

PROMPT = [5, 9, 33]


@oracle("expert-ensemble")
def expert_ensemble(
    guidance: ExpertEnsemble, logps: list[list[float]], s: float, likelihoods: list[float]
) -> list[float]:
    shares = guidance.prior or [1.0] * len(logps)
    told = likelihoods if guidance.updated else [0.0] * len(logps)
    top = max(value for value, share in zip(told, shares, strict=True) if share)
    weights = [share * math.exp(value - top) if share else 0.0 for share, value in zip(shares, told, strict=True)]
    mixed = []
    for values in zip(*logps, strict=True):
        p = sum(weight * math.exp(value) for weight, value in zip(weights, values, strict=True)) / sum(weights)
        mixed.append(math.log(p) if values[0] > -INF and p > 0 else -INF)
    return decoding.normalized(mixed)


settings(
    ExpertEnsemble(prior=(1, 0)),
    ExpertEnsemble(),
    ExpertEnsemble(("a", "b"), prior=(0, 1, 2.5)),
    ExpertEnsemble(("a", "b"), prior=(3, 1, 1), updated=False),
)


def test_weights_are_bayes_rule() -> None:
    logp = torch.tensor([[[0.5, 0.5]], [[0.9, 0.1]], [[0.1, 0.9]]]).log()
    told = torch.tensor([[0.2], [0.1], [0.4]], dtype=torch.float64).log()
    ensemble = ExpertEnsemble(("a", "b"), prior=(2, 1, 1))
    posterior = torch.tensor([0.4, 0.1, 0.4]) / 0.9
    weights = ensemble.log_weights(logp, Step(likelihoods=told)).exp()[:, 0]
    torch.testing.assert_close(weights, posterior)
    mixed = (posterior[:, None] * logp[:, 0].exp()).sum(0)
    torch.testing.assert_close(guided_log_probs(ensemble, logp, Step(likelihoods=told)).exp()[0], mixed)
    # A text that all experts hold for impossible says nothing about them.
    nothing = ensemble.log_weights(logp, Step(likelihoods=torch.full((3, 1), -INF))).exp()[:, 0]
    torch.testing.assert_close(nothing, torch.tensor([0.5, 0.25, 0.25]))
    forbidden = logp.clone()
    forbidden[0, 0] = torch.tensor([0.0, -INF])
    assert torch.isneginf(guided_log_probs(ensemble, forbidden, Step(likelihoods=told))[0, 1])
    with pytest.raises(ValueError, match=r"step\.likelihoods=None"):
        guided_log_probs(ensemble, logp, Step())


def models() -> dict[str, Any]:
    return {"expert": build("llama", 1)}


def probability(tokens: list[int]) -> float:
    """log p of a text under the mixture of whole texts, ``Σ_j P(j) Π p_j``: what the ensemble's steps multiply to."""
    totals = []
    for model in (build("llama"), build("llama", 1)):
        steps = (decoding.next_log_probs(model, [*PROMPT, *tokens[:i]])[token] for i, token in enumerate(tokens))
        totals.append(sum(steps))
    top = max(totals)
    return top + math.log(sum(0.5 * math.exp(total - top) for total in totals))


def test_a_text_has_the_probability_of_the_mixture_of_texts() -> None:
    out = textguide.generate(
        build("llama"), Tokenizer(), [PROMPT] * 3, ExpertEnsemble(), models=models(), max_new_tokens=12, seed=0,
        temperature=1.0, top_k=0,
    )  # fmt: skip
    for row, tokens in enumerate(out.new_tokens):
        assert out.log_likelihood[row].item() == pytest.approx(probability(tokens), abs=1e-3)
    scored = textguide.score(
        build("llama"), Tokenizer(), [PROMPT] * 3, out.new_tokens, ExpertEnsemble(), models=models(), batch_size=2
    )
    torch.testing.assert_close(scored.log_likelihood[0], out.log_likelihood, atol=1e-3, rtol=0)
    # The weights move: the prior alone gives the text another probability.
    fixed = textguide.score(
        build("llama"), Tokenizer(), [PROMPT] * 3, out.new_tokens, ExpertEnsemble(updated=False), models=models()
    )
    assert (fixed.log_likelihood - scored.log_likelihood).abs().min() > 0.05


def test_rows_that_move_take_their_sums_along() -> None:
    letters = Tokenizer.letters.encode()
    rest = [b""] * (61 - 3 - len(letters))
    vocabulary = Vocabulary((b"", b"", b"", *(bytes([c]) for c in letters), *rest), frozenset({2}))

    def early(text: str) -> float:
        return 2.0 * sum(letter < "m" for letter in text)

    guidance = [ExpertEnsemble(), AWRS(Regex("[a-z]*"), particles=6, critic=early)]
    out = textguide.generate(
        build("llama"), Tokenizer(), [PROMPT], guidance, models=models(), max_new_tokens=8, seed=3,
        vocabulary=vocabulary, eos_token_id=2,
    )  # fmt: skip
    assert len({tuple(tokens[:2]) for tokens in out.new_tokens}) < 6  # rows went on from others
    for row, tokens in enumerate(out.new_tokens):
        assert out.log_probs[row].sum().item() == pytest.approx(probability(tokens), abs=1e-3)


def test_forks_take_their_sums_along() -> None:
    out = textguide.generate(
        build("llama"), Tokenizer(), [PROMPT], [ExpertEnsemble(), EAGer(0.5, max_branches=4)], models=models(),
        max_new_tokens=8, num_return_sequences=4, do_sample=True, temperature=1.0, top_k=0, seed=1,
    )  # fmt: skip
    texts = [tokens for tokens in out.new_tokens if tokens]
    assert len(texts) > 2
    for row, tokens in enumerate(out.new_tokens):
        if tokens:
            assert out.log_probs[row][: len(tokens)].sum().item() == pytest.approx(probability(tokens), abs=1e-3)


def test_speculation_changes_nothing() -> None:
    def run(**options: Any) -> Any:
        return textguide.generate(
            build("llama"), Tokenizer(), [PROMPT, [11, 4]], ExpertEnsemble(), models=models(), max_new_tokens=20,
            **options,
        )  # fmt: skip

    plain, guessed = run(), run(speculation="recycling")
    assert guessed.new_tokens == plain.new_tokens
    torch.testing.assert_close(guessed.log_probs[0], plain.log_probs[0], atol=1e-4, rtol=1e-4)


def test_identity_and_places() -> None:
    guidance = ExpertEnsemble(["a", "b"], [0, 1, 1])  # type: ignore[arg-type]
    assert guidance == ExpertEnsemble(("a", "b"), (0.0, 1.0, 1.0))
    assert Guidance.from_json(guidance.to_json()) == guidance
    assert parse("expert-ensemble:models=law,updated=false") == ExpertEnsemble("law", updated=False)  # type: ignore
    with pytest.raises(ValueError, match="so there is no text so far"):
        check_place(ExpertEnsemble(), "diffusion")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"models": ()}, r"models=\(\)"),
        ({"models": ("a", "a")}, "different names"),
        ({"models": ("a",), "prior": (1, 1, 1)}, "must be 2 numbers"),
        ({"prior": (0, 0)}, "not all 0"),
        ({"prior": (-1, 2)}, "of 0 or more"),
        ({"prior": (1, INF)}, "prior=inf"),
        ({"prior": 3}, "prior=3"),
        ({"updated": 1}, "updated=1"),
    ],
)
def test_fields_are_checked(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExpertEnsemble(**fields)


# -- adapters -------------------------------------------------------------------------------------------------------


PEFT_WARNS = pytest.mark.filterwarnings("ignore::FutureWarning")  # it reads names that transformers renamed


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    peft = pytest.importorskip("peft")
    found = {}
    for seed, name in enumerate(("a", "b")):
        torch.manual_seed(seed)
        config = peft.LoraConfig(
            task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False
        )
        found[name] = tmp_path_factory.mktemp(name)
        peft.get_peft_model(copy.deepcopy(build("llama")), config).save_pretrained(found[name])
    return found


@PEFT_WARNS
def test_adapters_share_the_weights_of_their_base(folders: dict[str, Path]) -> None:
    base = copy.deepcopy(build("llama"))
    next(base.parameters()).requires_grad_(False)
    flags = [parameter.requires_grad for parameter in base.parameters()]
    ids = torch.tensor([PROMPT])
    before = base(ids).logits
    experts = adapters(base, folders)
    own = {parameter.data_ptr() for parameter in base.parameters()}
    for expert in experts.values():
        lora = [p for name, p in expert.named_parameters() if "lora_" in name]
        shared = [p for name, p in expert.named_parameters() if "lora_" not in name]
        assert lora
        assert {parameter.data_ptr() for parameter in shared} == own
    # The base is as it was, and each expert is what PEFT loads by itself.
    assert torch.equal(base(ids).logits, before)
    assert not any("lora" in name for name, _ in base.named_modules())
    assert [parameter.requires_grad for parameter in base.parameters()] == flags
    peft = pytest.importorskip("peft")
    for name, expert in experts.items():
        alone = peft.PeftModel.from_pretrained(copy.deepcopy(build("llama")), folders[name]).eval()
        torch.testing.assert_close(expert(ids).logits, alone(ids).logits)
        assert not torch.equal(expert(ids).logits, before)


@PEFT_WARNS
def test_adapters_guide(folders: dict[str, Path]) -> None:
    base = build("llama")
    guidance = ExpertEnsemble(("a", "b"), prior=(0, 1, 1))
    out = textguide.generate(
        base, Tokenizer(), [PROMPT], guidance, models=load_further(base, folders), max_new_tokens=6
    )
    experts = adapters(base, folders)
    tokens, _ = decoding.generate(base, PROMPT, guidance, [PROMPT, PROMPT], 6, models=experts)
    assert out.new_tokens == [tokens]


@PEFT_WARNS
def test_adapters_that_do_not_fit(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailableError, match="has no adapter_config"):
        adapters(build("llama"), {"a": tmp_path})
    with pytest.raises(ModelUnavailableError, match=r"'a' of .* does not fit"):
        adapters(build("gpt2"), folders)
    with pytest.raises(ValueError, match="model already has adapters"):
        adapters(adapters(build("llama"), folders)["a"], folders)

"""generate and stream: options, sampling distribution, outputs, and bad input."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, GPTNeoConfig, GPTNeoForCausalLM

import textguide
from textguide import CFG, EAGer, PowerSampling, guided_decoding
from textguide.guidance import Branch, BranchGuidance
from textguide.reference import decoding

from .architectures import PAD, VOCAB, Tokenizer, build

PROMPT = [5, 9, 33, 7, 20]
TOKENIZER = Tokenizer()


def run(prompts: Any, guidance: Any = None, name: str = "llama", **options: Any) -> Any:
    options.setdefault("max_new_tokens", 6)
    return textguide.generate(build(name), TOKENIZER, prompts, guidance, **options)


def test_sampled_distribution_is_the_guided_distribution() -> None:
    guidance = CFG(2.0)
    _, distributions = decoding.generate(build("llama"), PROMPT, guidance, [PROMPT[-1:]], 1)
    draws = run([PROMPT] * 4000, guidance, max_new_tokens=1, do_sample=True, top_k=0, seed=0)
    assert _chi_square(draws.new_tokens, distributions[0]) < _CRITICAL
    # The same test rejects a sampler at a scale that is a little off.
    wrong = run([PROMPT] * 4000, CFG(1.5), max_new_tokens=1, do_sample=True, top_k=0, seed=0)
    assert _chi_square(wrong.new_tokens, distributions[0]) > _CRITICAL


# The 99.9% quantile of chi-square with up to VOCAB − 1 degrees of freedom (Wilson–Hilferty).
_CRITICAL = (VOCAB - 1) * (1 - 2 / (9 * (VOCAB - 1)) + 3.09 * math.sqrt(2 / (9 * (VOCAB - 1)))) ** 3


def _chi_square(rows: list[list[int]], distribution: list[float]) -> float:
    counts = Counter(row[0] for row in rows)
    expected = [len(rows) * math.exp(p) for p in distribution]
    rare = [i for i, e in enumerate(expected) if e < 5]
    bins = [(counts[i], expected[i]) for i in range(len(distribution)) if i not in set(rare)]
    if rare:
        bins.append((sum(counts[i] for i in rare), sum(expected[i] for i in rare)))
    return sum((observed - e) ** 2 / e for observed, e in bins if e > 0)


def test_a_seed_for_every_row() -> None:
    prompts = [PROMPT, [4, 8], [11, 4, 52, 8, 30, 31], [1, 6], PROMPT]
    drawn = {"do_sample": True, "top_k": 0, "max_new_tokens": 12, "eos_token_id": 7}
    alone = [run(p, CFG(1.5), seed=s, **drawn).new_tokens[0] for p, s in zip(prompts, [3, 9, 4, 4, 5], strict=True)]
    for size in (None, 2):
        assert run(prompts, CFG(1.5), seed=[3, 9, 4, 4, 5], batch_size=size, **drawn).new_tokens == alone
    assert run(prompts, CFG(1.5), seed=3, **drawn).new_tokens[1:] != alone[1:]
    for guidance, options, message in (
        (None, {"seed": [1, 2]}, "has 2 seeds and there are 5 prompts"),
        (None, {"seed": [1.5] * 5}, "must be a whole number, or a list"),
        (None, {"seed": [1] * 5, "num_return_sequences": 2}, "repeat the prompts"),
        (textguide.PowerSampling(2.0), {"seed": [1] * 5}, "one prompt at a time"),
    ):
        with pytest.raises(ValueError, match=message):
            run(prompts, guidance, **{**drawn, **options})


def test_batch_size_splits_and_joins() -> None:
    prompts = [PROMPT, [4, 8], [11, 4, 52, 8, 30, 31], [1, 6]]
    whole = run(prompts, CFG(1.5))
    parts = run(prompts, CFG(1.5), batch_size=3)
    assert parts.new_tokens == whole.new_tokens
    assert parts.sequences.tolist() == whole.sequences.tolist()
    torch.testing.assert_close(parts.log_likelihood, whole.log_likelihood, atol=1e-4, rtol=0)
    assert parts.effect.guided_steps == whole.effect.guided_steps == 24
    assert parts.effect.mean_kl == pytest.approx(whole.effect.mean_kl, abs=1e-5)


def test_sequences_hold_prompts_padding_and_text() -> None:
    out = run([PROMPT, [4, 8]], CFG(1.5))
    assert out.sequences.shape == (2, 5 + 6)
    assert out.sequences[1, :5].tolist() == [PAD, PAD, PAD, 4, 8]
    assert out.sequences[0, 5:].tolist() == out.new_tokens[0]
    assert out.log_weights is None


def test_num_return_sequences_and_negatives_per_prompt() -> None:
    out = run(
        [PROMPT, [4, 8]],
        CFG(2.0, negative_prompt=[[1, 2], [3]]),
        num_return_sequences=3,
        do_sample=True,
        seed=1,
    )
    assert len(out.texts) == 6
    for row, tokens in enumerate(out.new_tokens):
        negative = [[1, 2], [3]][row // 3]
        prompt = [PROMPT, [4, 8]][row // 3]
        log_probs, _ = decoding.score(build("llama"), prompt, tokens, CFG(2.0), [negative])
        assert out.log_likelihood[row].item() == pytest.approx(sum(log_probs), abs=1e-3)


def test_processors_and_warpers_apply_to_the_guided_distribution() -> None:
    banned = run(PROMPT, CFG(1.5)).new_tokens[0][0]
    out = run(PROMPT, CFG(1.5), suppress_tokens=[banned])
    assert banned not in out.new_tokens[0]
    once = run(PROMPT, CFG(1.5), max_new_tokens=20, no_repeat_ngram_size=1).new_tokens[0]
    assert len(set(once)) == 20


def test_processors_that_are_not_shift_invariant_tend_to_plain_decoding() -> None:
    model = build("llama")
    common: dict[str, Any] = {
        "attention_mask": torch.ones(1, 5), "max_new_tokens": 4, "do_sample": False, "repetition_penalty": 1.5,
        "return_dict_in_generate": True, "output_scores": True,
    }  # fmt: skip
    plain = model.generate(torch.tensor([PROMPT]), **common)
    almost = model.generate(
        torch.tensor([PROMPT]), **common, custom_generate=guided_decoding(CFG(1 + 1e-6), warn=False)
    )
    for ours, theirs in zip(almost.scores, plain.scores, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)


_PENALTIES: dict[str, Any] = {
    "repetition_penalty": 1.2,
    "encoder_repetition_penalty": 1.5,
    "exponential_decay_length_penalty": (2, 1.3),
}
_PADDED = {"input_ids": [PROMPT, [PAD, PAD, 11, 4, 52]], "attention_mask": [[1] * 5, [0, 0, 1, 1, 1]]}


@pytest.mark.parametrize("penalty", _PENALTIES)
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("negative", [None, [17, 18, 19]])
@pytest.mark.parametrize("do_sample", [False, True])
def test_without_renormalising_penalties_act_as_in_transformers(
    penalty: str, rows: int, negative: list[int] | None, do_sample: bool
) -> None:
    model = build("llama")
    inputs = {name: torch.tensor(values[:rows]) for name, values in _PADDED.items()}
    common = {"max_new_tokens": 16, "do_sample": do_sample, "eos_token_id": 7, penalty: _PENALTIES[penalty]}
    negatives = {} if negative is None else {"negative_prompt_ids": torch.tensor([negative] * rows)}
    guidance = CFG(3.0, negative, renormalize=False)
    torch.manual_seed(3)
    theirs = model.generate(**inputs, **common, **negatives, guidance_scale=3.0)
    torch.manual_seed(3)
    ours = model.generate(**inputs, **common, custom_generate=guided_decoding(guidance))
    assert ours.tolist() == theirs.tolist()
    prompts = [PROMPT, [11, 4, 52]][:rows]
    out = textguide.generate(model, TOKENIZER, prompts, guidance, seed=3, **common)
    assert out.sequences.tolist() == theirs.tolist()


def test_stop_texts_and_seed() -> None:
    out = run([[4, 8]], CFG(1.5), max_new_tokens=20, do_sample=True, seed=2)
    again = run([[4, 8]], CFG(1.5), max_new_tokens=20, do_sample=True, seed=2)
    assert out.new_tokens == again.new_tokens
    before = torch.get_rng_state()
    run([[4, 8]], CFG(1.5), do_sample=True, seed=2)
    assert torch.equal(before, torch.get_rng_state())


def test_texts_are_grouped_by_prompt() -> None:
    prompts = [PROMPT, [4, 8], [11, 4]]
    single = run(prompts, CFG(1.5))
    assert single.grouped == [[text] for text in single.texts]
    copies = {"num_return_sequences": 2, "do_sample": True, "seed": 0}
    particles = PowerSampling(2.0, particles=3)
    forks = EAGer(entropy_threshold=0.0, max_branches=3)
    for guidance, options, size in (
        (CFG(1.5), copies, 2),
        (None, {"generation_config": GenerationConfig(num_return_sequences=2, do_sample=True)}, 2),
        (particles, {"seed": 0}, 3),
        (particles, {"num_return_sequences": 2, "seed": 0}, 6),
        (forks, {"seed": 0, "do_sample": True}, 3),
    ):
        for batch_size in (None, 1):
            out = run(prompts, guidance, batch_size=batch_size, **options)
            rows = [out.texts[start : start + size] for start in range(0, 3 * size, size)]
            assert out.grouped == rows
            assert len(out.texts) == 3 * size
            starts = out.sequences[:, : -max(map(len, out.new_tokens))].tolist()
            assert all(row[-len(prompts[n // size]) :] == prompts[n // size] for n, row in enumerate(starts))


def test_stream_gives_the_text_of_generate() -> None:
    prompts = [PROMPT, [4, 8]]
    out = run(prompts, CFG(1.5), max_new_tokens=12)
    texts = ["", ""]
    tokens: list[list[int]] = [[], []]
    for chunk in textguide.stream(build("llama"), TOKENIZER, prompts, CFG(1.5), max_new_tokens=12):
        texts[chunk.row] += chunk.text
        tokens[chunk.row].append(chunk.token)
    assert texts == out.texts
    assert tokens == out.new_tokens


def test_stream_leaves_grad_mode_alone_and_can_be_closed() -> None:
    steps = textguide.stream(build("llama"), TOKENIZER, PROMPT, CFG(1.5), max_new_tokens=12)
    next(steps)
    assert torch.is_grad_enabled()
    steps.close()
    assert torch.is_grad_enabled()


def test_custom_generate_outputs() -> None:
    model = build("llama")
    out = model.generate(
        torch.tensor([PROMPT, PROMPT]),
        attention_mask=torch.ones(2, 5),
        max_new_tokens=6,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        custom_generate=guided_decoding(CFG(1.5)),
    )
    _, distributions = decoding.generate(model, PROMPT, CFG(1.5), [PROMPT[-1:]], 6)
    guided = torch.log_softmax(torch.stack(out.scores)[:, 0].double(), -1)
    torch.testing.assert_close(guided, torch.tensor(distributions).double(), atol=2e-4, rtol=0)
    cond = decoding.next_log_probs(model, PROMPT)
    assert torch.log_softmax(out.logits[0][0], -1).tolist() == pytest.approx(cond, abs=1e-4)
    assert out.effect.guided_steps == 12


def test_system_prompts() -> None:
    chat = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]
    as_chat = run([chat], CFG(3.0, negative_system="be rude"))
    as_text = run(["hello"], CFG(3.0, negative_system="be rude"), system="be kind")
    by_hand = run(["system:be kind\nuser:hello\n"], CFG(3.0, negative_prompt="system:be rude\nuser:hello\n"))
    assert as_chat.new_tokens == as_text.new_tokens == by_hand.new_tokens


def test_a_static_cache_that_changes_the_logits_is_refused() -> None:
    ids: dict[str, Any] = {"vocab_size": 61, "pad_token_id": 0, "eos_token_id": 2}
    config = GPTNeoConfig(
        hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=4, **ids
    )
    model = GPTNeoForCausalLM(config).eval()
    for guidance in (CFG(1.5), "apg:scale=2"):
        with pytest.raises(ValueError, match="GPTNeoForCausalLM computes other logits with a cache of fixed shape"):
            textguide.generate(
                model, Tokenizer(), [[5, 6, 7]], guidance, max_new_tokens=3, cache_implementation="static"
            )


def test_static_cache_gives_the_same_text() -> None:
    for name in ("gpt2", "llama"):
        dynamic = run([PROMPT, [4, 8]], CFG(1.5), name)
        static = run([PROMPT, [4, 8]], CFG(1.5), name, cache_implementation="static")
        assert static.new_tokens == dynamic.new_tokens
        assert static.effect.guided_steps == dynamic.effect.guided_steps
        assert static.effect.mean_kl == pytest.approx(dynamic.effect.mean_kl, abs=1e-5)
    with pytest.raises(ValueError, match="cache_implementation='static'"):
        run(PROMPT, CFG(1.5), "gemma3", cache_implementation="static")


def test_static_cache_when_rows_end_early() -> None:
    end = run([PROMPT, [4, 8]], CFG(1.5), max_new_tokens=12).new_tokens[0][2]
    dynamic = run([PROMPT, [4, 8]], CFG(1.5), max_new_tokens=12, eos_token_id=end)
    static = run([PROMPT, [4, 8]], CFG(1.5), max_new_tokens=12, eos_token_id=end, cache_implementation="static")
    assert static.new_tokens == dynamic.new_tokens
    assert static.effect.guided_steps == dynamic.effect.guided_steps
    assert static.effect.mean_kl == pytest.approx(dynamic.effect.mean_kl, abs=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("static", [False, True])
def test_gpu_gives_the_text_of_the_cpu(static: bool) -> None:
    import copy

    expected = run([PROMPT, [4, 8]], CFG(1.5))
    model = copy.deepcopy(build("llama")).to("cuda")
    options = {"cache_implementation": "static"} if static else {}
    out = textguide.generate(model, TOKENIZER, [PROMPT, [4, 8]], CFG(1.5), max_new_tokens=6, **options)
    assert out.new_tokens == expected.new_tokens


class TwoModels(BranchGuidance):
    """log p + log p_other: a product with a second model that reads the same prompt."""

    @property
    def branches(self) -> tuple[Branch, ...]:
        return (Branch(same_prompt=True, model="other"),)

    def combine(self, logp: torch.Tensor, step: Any) -> torch.Tensor:
        return torch.log_softmax(logp.sum(0), -1)

    def __repr__(self) -> str:
        return "TwoModels()"


def test_branch_on_another_model() -> None:
    other = build("gpt2")
    out = run([PROMPT, [4, 8]], TwoModels(), models={"other": other})
    for row, prompt in enumerate([PROMPT, [4, 8]]):
        written: list[int] = []
        for token in out.new_tokens[row]:
            distributions = [decoding.next_log_probs(m, prompt + written) for m in (build("llama"), other)]
            total = [a + b for a, b in zip(*distributions, strict=True)]
            assert token == total.index(max(total))
            written.append(token)
    scored = textguide.score(
        build("llama"), TOKENIZER, [PROMPT], out.new_tokens[:1], TwoModels(), models={"other": other}
    )
    assert scored.log_likelihood[0, 0].item() == pytest.approx(out.log_likelihood[0].item(), abs=1e-3)


def test_branch_on_a_model_with_another_vocabulary() -> None:
    import transformers as tf

    other = tf.GPT2LMHeadModel(tf.GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=64, vocab_size=70)).eval()
    with pytest.raises(ValueError, match="'other' has 70 tokens in its vocabulary and the decoded model 61"):
        run(PROMPT, TwoModels(), models={"other": other})
    with pytest.raises(ValueError, match=r"\[61, 70\]"):
        textguide.score(build("llama"), TOKENIZER, [PROMPT], [[4]], TwoModels(), models={"other": other})
    with pytest.raises(ValueError, match="'other' is not among models="):
        run(PROMPT, TwoModels())


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([PROMPT], {"max_new_tokens": 0}, "max_new_tokens=0"),
        ([PROMPT], {"max_new_tokens": 2.5}, "max_new_tokens=2.5"),
        ([PROMPT], {"max_new_tokens": True}, "max_new_tokens=True"),
        ([PROMPT], {"batch_size": 0}, "batch_size=0"),
        ([], {}, "prompts is empty"),
        ([3.5], {}, r"prompts\[0\]=3.5"),
        ([[1] * 60], {"max_new_tokens": 9}, r"prompts\[0\] has 60 tokens and max_new_tokens=9.*64 positions"),
        ([[99]], {}, r"prompts\[0\] has token id 99; the vocabulary has 61"),
        ([PROMPT], {"guidance": "cgf"}, "guidance 'cgf' is unknown"),
        ([PROMPT], {"guidance": [CFG(1.5), CFG(2.0)]}, "cannot be combined"),
        (
            [PROMPT],
            {"guidance": CFG(1.5, negative_prompt=[[1], [2]])},
            "negative_prompt has 2 rows and the batch has 1",
        ),
        ([PROMPT], {"guidance": CFG(1.5, negative_prompt=[99])}, r"negative_prompt\[0\] has token id 99"),
        ([PROMPT], {"guidance": CFG(1.5, negative_system="x")}, "token ids"),
        ([PROMPT], {"guidance": CFG(1.5), "num_beams": 3}, "num_beams=3.*GuidanceLogitsProcessor"),
        ([PROMPT], {"guidance": CFG(1.5), "use_cache": False}, "use_cache=False"),
        (
            [PROMPT],
            {"guidance": CFG(1.5), "guidance_scale": 2.0},
            r"guidance_scale= is not an option.*pass guidance=CFG\(scale\)",
        ),
        ([PROMPT], {"guidance": CFG(1.5), "prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens=3"),
        ([PROMPT], {"guidance": CFG(1.5), "cache_implementation": "offloaded"}, "'offloaded'"),
        ([PROMPT], {"max_length": 9}, "max_length="),
        ([PROMPT], {"top_p": 7}, "top_p=7 must be in"),
        ([PROMPT], {"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ([PROMPT], {"temperature": float("nan")}, "temperature=nan"),
        ([PROMPT], {"top_k": -1}, "top_k=-1"),
        ([[{"role": "user", "content": None}]], {}, "must have a text as role and as content"),
    ],
)
def test_bad_input(prompts: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(prompts, **options)


def test_empty_prompt_without_a_begin_token() -> None:
    class NoBegin(Tokenizer):
        bos_token_id = None

    with pytest.raises(ValueError, match=r"prompts\[0\]='' is empty"):
        textguide.generate(build("llama"), NoBegin(), [""], CFG(1.5))
    assert len(run([""], CFG(1.5, negative_prompt="a")).new_tokens[0]) == 6


def test_architecture_that_keeps_its_state_elsewhere_is_refused() -> None:
    import transformers as tf

    config = tf.RwkvConfig(
        vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, context_length=32, attention_hidden_size=16
    )
    model = tf.RwkvForCausalLM(config).eval()
    with pytest.raises(ValueError, match="RwkvForCausalLM does not keep its state in a transformers Cache"):
        textguide.generate(model, TOKENIZER, [PROMPT], CFG(1.5), max_new_tokens=2)

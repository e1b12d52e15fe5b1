"""Every option of transformers' ``generate`` is honoured, or refused by name, or does nothing there either."""

from __future__ import annotations

import inspect
import operator
import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, GenerationMixin, WatermarkingConfig
from transformers.generation.streamers import BaseStreamer

import textguide
from textguide import CFG, guided_decoding
from textguide.engine.custom_generate import _OTHER_LOOPS

from ..architectures import PAD, VOCAB, Tokenizer, build

PROMPT = [5, 9, 33, 7, 20]
TOKENIZER = Tokenizer()
NEW = 8
GUIDANCE = CFG(1.5)


@dataclass(frozen=True)
class Honoured:
    """A value that our loop follows as transformers' own does.

    Args:
        value: of the option.
        changes: whether it changes the tokens of the guided run.
        beside: options that it needs.
        name: the model.
        generate: whether :func:`textguide.generate` takes it too.
    """

    value: Any
    changes: bool = True
    beside: tuple[tuple[str, Any], ...] = ()
    name: str = "llama"
    generate: bool = True


@dataclass(frozen=True)
class Refused:
    """A value that our loop refuses under guidance."""

    value: Any


@dataclass(frozen=True)
class Harmless:
    """An option that transformers' own sampling loop does not read either."""

    why: str


FIRST = textguide.generate(build("llama"), TOKENIZER, PROMPT, GUIDANCE, max_new_tokens=NEW).new_tokens[0]
DRAWS = (("do_sample", True),)
ENDS = (("eos_token_id", FIRST[2]),)
FIELDS: dict[str, Honoured | Refused | Harmless] = {
    "max_length": Honoured(len(PROMPT) + 3, generate=False),
    "max_new_tokens": Honoured(3),
    "min_length": Honoured(len(PROMPT) + 5, beside=ENDS),
    "min_new_tokens": Honoured(5, beside=ENDS),
    "early_stopping": Harmless("beam search alone"),
    "max_time": Honoured(0.0),
    "stop_strings": Harmless("tested below: generate alone can pass it on"),
    "do_sample": Honoured(True),
    "num_beams": Refused(2),
    "use_mtp": Refused(True),
    "use_cache": Refused(False),
    "cache_implementation": Refused("offloaded_static"),
    "cache_config": Harmless("quantized caches alone, which are refused"),
    "max_cache_len": Harmless("the size of a static cache, which follows from the run here"),
    "temperature": Honoured(4.0, beside=DRAWS),
    "top_k": Honoured(2, beside=DRAWS),
    "top_p": Honoured(0.1, beside=DRAWS),
    "min_p": Honoured(0.9, beside=DRAWS),
    "top_h": Honoured(0.05, beside=DRAWS),
    "typical_p": Honoured(0.1, beside=DRAWS),
    "epsilon_cutoff": Honoured(0.3, beside=DRAWS),
    "eta_cutoff": Honoured(0.9, beside=DRAWS),
    "repetition_penalty": Honoured(9.0),
    "encoder_repetition_penalty": Honoured(9.0),
    "length_penalty": Harmless("beam search alone"),
    "no_repeat_ngram_size": Honoured(1, name="gpt2"),
    "bad_words_ids": Honoured([[FIRST[0]]]),
    "renormalize_logits": Honoured(True, changes=False),
    "forced_bos_token_id": Honoured(7, name="t5"),
    "forced_eos_token_id": Honoured(7),
    "remove_invalid_values": Honoured(True, changes=False),
    "exponential_decay_length_penalty": Honoured((0, 9.0), beside=(("eos_token_id", 7),)),
    "suppress_tokens": Honoured([FIRST[1]]),
    "begin_suppress_tokens": Honoured([FIRST[0]]),
    "sequence_bias": Honoured({(FIRST[1],): -50.0}),
    "token_healing": Harmless("asks for the tokenizer that it keeps from custom loops; textguide.generate refuses it"),
    "guidance_scale": Refused(1.5),
    "watermarking_config": Honoured(WatermarkingConfig(bias=20.0)),
    "num_return_sequences": Honoured(2, beside=DRAWS),
    "output_attentions": Refused(True),
    "output_hidden_states": Refused(True),
    "output_scores": Honoured(True, changes=False, generate=False),
    "output_logits": Honoured(True, changes=False, generate=False),
    "return_dict_in_generate": Honoured(True, changes=False, generate=False),
    "pad_token_id": Honoured(4, changes=False),
    "bos_token_id": Harmless("stands for a prompt that was not given"),
    "eos_token_id": Honoured(FIRST[2]),
    "encoder_no_repeat_ngram_size": Honoured(1, name="t5"),
    "decoder_start_token_id": Honoured(9, name="t5"),
    "is_assistant": Refused(True),
    "num_assistant_tokens": Harmless("assisted decoding alone, which is refused"),
    "num_assistant_tokens_schedule": Harmless("assisted decoding alone"),
    "assistant_confidence_threshold": Harmless("assisted decoding alone"),
    "prompt_lookup_num_tokens": Refused(2),
    "max_matching_ngram_size": Harmless("prompt lookup alone, which is refused"),
    "assistant_early_exit": Refused(1),
    "assistant_lookbehind": Harmless("assisted decoding alone"),
    "target_lookbehind": Harmless("assisted decoding alone"),
    "assistant_ensemble_weight": Harmless("assisted decoding alone"),
    "speculation_type": Refused("dflash"),
    "compile_config": Harmless("compilation, on a GPU alone: the same call as transformers' own"),
    "disable_compile": Harmless("compilation, on a GPU alone"),
    "continuous_batching_config": Harmless("generate_batch alone"),
    "low_memory": Harmless("contrastive search alone, which is refused"),
    "penalty_alpha": Refused(0.6),
    "dola_layers": Refused("high"),
    "diversity_penalty": Refused(0.5),
    "num_beam_groups": Refused(2),
    "constraints": Refused([object()]),
    "force_words_ids": Refused([[5]]),
    "prefill_chunk_size": Honoured(4, changes=False),
    "_from_model_config": Harmless("a note"),
    "transformers_version": Harmless("a note"),
}
HONOURED = {name: how for name, how in FIELDS.items() if isinstance(how, Honoured)}
REFUSED = {name: how for name, how in FIELDS.items() if isinstance(how, Refused)}


def test_every_option_of_transformers_is_known() -> None:
    assert set(GenerationConfig().to_dict()) - set(FIELDS) == set()


def test_every_argument_of_generate_is_known() -> None:
    honoured = {"inputs", "generation_config", "logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn"}
    refused = {"synced_gpus", "assistant_model", "negative_prompt_ids"}
    goes_with_it = {"negative_prompt_attention_mask"}
    known = {"self", "kwargs", "custom_generate", "streamer", *honoured, *refused, *goes_with_it}
    assert set(inspect.signature(GenerationMixin.generate).parameters) - known == set()


def run(options: dict[str, Any], name: str = "llama", **more: Any) -> Any:
    torch.manual_seed(5)
    options = {**({} if "max_length" in options else {"max_new_tokens": NEW}), **options}
    return build(name).generate(torch.tensor([PROMPT]), attention_mask=torch.ones(1, len(PROMPT)), **options, **more)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    equal = torch.equal(one.sequences, other.sequences)
    for name in ("scores", "logits"):
        mine, theirs = getattr(one, name), getattr(other, name)
        equal &= (mine is None) == (theirs is None)
        equal &= mine is None or all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    return equal


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
@pytest.mark.parametrize("name", HONOURED)
def test_honoured(name: str) -> None:
    how = HONOURED[name]
    beside = dict(how.beside)
    options = {**beside, name: how.value}
    if name.startswith("output_"):
        options["return_dict_in_generate"] = True
    assert same(run(options, how.name, custom_generate=guided_decoding(None)), run(options, how.name))
    guided = run(options, how.name, custom_generate=guided_decoding(GUIDANCE, warn=False))
    ids = guided if isinstance(guided, torch.Tensor) else guided.sequences
    plain = run(beside, how.name, custom_generate=guided_decoding(GUIDANCE, warn=False))
    assert torch.equal(ids, plain) != how.changes
    if how.generate:
        torch.manual_seed(5)
        out = textguide.generate(
            build(how.name),
            TOKENIZER,
            PROMPT,
            GUIDANCE,
            **{"max_new_tokens": NEW, **options},
        )
        assert torch.equal(out.sequences, ids)
        torch.manual_seed(5)
        config = GenerationConfig(**{"max_new_tokens": NEW, **options})
        again = textguide.generate(build(how.name), TOKENIZER, PROMPT, GUIDANCE, generation_config=config)
        assert torch.equal(again.sequences, ids)
    else:
        with pytest.raises(ValueError, match=f"{name}="):
            textguide.generate(build(how.name), TOKENIZER, PROMPT, GUIDANCE, **{name: how.value})


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    options = {name: REFUSED[name].value}
    with pytest.raises(ValueError, match=f"{name}="):
        run(options, custom_generate=guided_decoding(GUIDANCE))
    with pytest.raises(ValueError, match=f"{name}="):
        textguide.generate(build("llama"), TOKENIZER, PROMPT, GUIDANCE, max_new_tokens=NEW, **options)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("assistant_model", build("gpt2")),
        ("negative_prompt_ids", torch.tensor([[7, 8]])),
        ("synced_gpus", True),
    ],
)
def test_arguments_of_generate_that_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}="):
        run({name: value}, custom_generate=guided_decoding(GUIDANCE))
    with pytest.raises(ValueError, match=f"{name}="):
        textguide.generate(build("llama"), TOKENIZER, PROMPT, GUIDANCE, max_new_tokens=NEW, **{name: value})
    with pytest.raises(ValueError, match=f"{name}="):
        list(textguide.stream(build("llama"), TOKENIZER, PROMPT, GUIDANCE, max_new_tokens=NEW, **{name: value}))


def test_negative_prompt_ids_without_guidance_stay_transformers_own() -> None:
    options = {"negative_prompt_ids": torch.tensor([[7, 8]]), "guidance_scale": 1.5}
    assert same(run(options, custom_generate=guided_decoding(None)), run(options))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("token_healing", True),
        ("cache_implementation", "paged"),
        ("inputs_embeds", torch.zeros(1, 2, 32)),
        ("input_ids", torch.tensor([[5]])),
        ("generation_config", {"do_sample": True}),
        ("num_return_sequences", 0),
        ("batch_size", 1.5),
        ("seed", "x"),
        ("do_sample", "yes"),
        ("models", [build("gpt2")]),
        ("streamer", print),
        ("observer", 3),
        ("stopping_criteria", len),
        ("logits_processor", len),
        ("stop", 5),
        ("stop", ""),
        ("stop", ["a", ""]),
        ("stop_strings", [""]),
    ],
)
def test_textguide_generate_refuses(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}="):
        textguide.generate(build("llama"), TOKENIZER, PROMPT, GUIDANCE, max_new_tokens=2, **{name: value})


def test_what_is_given_by_itself_counts_before_generation_config() -> None:
    def tokens(**options: Any) -> list[int]:
        return textguide.generate(build("llama"), TOKENIZER, PROMPT, GUIDANCE, seed=3, **options).new_tokens[0]

    config = GenerationConfig(do_sample=True, max_new_tokens=6, temperature=2.0, max_length=99)
    assert tokens(generation_config=config) == tokens(do_sample=True, max_new_tokens=6, temperature=2.0)
    assert tokens(generation_config=config, do_sample=False) == FIRST[:6]
    assert tokens(generation_config=config, max_new_tokens=4) == tokens(generation_config=config)[:4]
    assert tokens(generation_config=config, temperature=1.0) == tokens(do_sample=True, max_new_tokens=6)
    # A sampling option in it makes the run draw, as one given by itself does.
    assert tokens(generation_config=GenerationConfig(temperature=2.0, max_new_tokens=6)) == tokens(
        temperature=2.0, max_new_tokens=6
    )
    with pytest.raises(ValueError, match=r"max_length= is not an option of textguide.generate; pass max_new_tokens"):
        tokens(generation_config=GenerationConfig(max_length=9))


def test_seeds_are_those_of_torch_and_belong_to_a_batch_size() -> None:
    prompts = [PROMPT, PROMPT[::-1], [8, 4, 8, 4, 8]]

    def texts(**options: Any) -> list[list[int]]:
        options = {"do_sample": True, "top_k": 0, "seed": 5, "max_new_tokens": NEW, **options}
        return textguide.generate(build("llama"), TOKENIZER, prompts, **options).new_tokens

    torch.manual_seed(5)
    inputs = {"inputs": torch.tensor(prompts), "attention_mask": torch.ones(3, 5)}
    theirs = build("llama").generate(**inputs, do_sample=True, top_k=0, max_new_tokens=NEW)
    assert texts() == theirs[:, 5:].tolist()
    assert texts(batch_size=2) == texts(batch_size=2)
    # As the docs say, another batch size draws other texts.
    assert texts(batch_size=2) != texts(batch_size=1)
    assert texts(batch_size=2, do_sample=False) == texts(batch_size=1, do_sample=False)


def words() -> Any:
    """A tokenizer of transformers, with a letter a token."""
    from tokenizers import Tokenizer as Core
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {chr(ord("A") + number): number for number in range(VOCAB)}
    core = Core(models.WordLevel(letters, unk_token="A"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core)


@pytest.mark.parametrize("where", ["stop", "stop_strings", "generation_config", "model"])
def test_stop_strings_get_the_tokenizer(where: str) -> None:
    import copy

    model, tokenizer = build("llama"), words()
    text = tokenizer.decode(FIRST)
    stop = text[1:3]
    options: dict[str, Any] = {where: [stop]} if where.startswith("stop") else {}
    if where == "generation_config":
        options = {where: GenerationConfig(stop_strings=[stop])}
    if where == "model":
        model = copy.deepcopy(model)
        model.generation_config.stop_strings = stop
    out = textguide.generate(model, tokenizer, PROMPT, GUIDANCE, max_new_tokens=NEW, **options)
    assert out.new_tokens == [FIRST[: text.index(stop) + 2]]


def test_a_model_that_is_configured_without_a_cache() -> None:
    import copy

    model = copy.deepcopy(build("llama"))
    model.generation_config.use_cache = False
    inputs = {"inputs": torch.tensor([PROMPT]), "attention_mask": torch.ones(1, 5), "max_new_tokens": NEW}
    assert model.generate(**inputs, custom_generate=guided_decoding(GUIDANCE))[0, 5:].tolist() == FIRST
    assert textguide.generate(model, TOKENIZER, PROMPT, GUIDANCE, max_new_tokens=NEW).new_tokens == [FIRST]
    plain = model.generate(**inputs, custom_generate=guided_decoding(None))
    assert torch.equal(plain, model.generate(**inputs))
    with pytest.raises(ValueError, match="use_cache=False"):
        model.generate(**inputs, use_cache=False, custom_generate=guided_decoding(GUIDANCE))


class Keep(BaseStreamer):
    """A streamer that keeps what it gets."""

    def __init__(self) -> None:
        self.puts: list[list[int]] = []
        self.ended = 0

    def put(self, value: torch.Tensor) -> None:
        self.puts.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended += 1


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_streamers_get_what_transformers_gives_them(name: str) -> None:
    expected = Keep()
    run({"streamer": expected}, name)
    for way in ("generate", "guided_decoding", "both"):
        ours = Keep()
        options = {} if way == "guided_decoding" else {"streamer": ours}
        decoding = guided_decoding(None, **({} if way == "generate" else {"streamer": ours}))
        run(options, name, custom_generate=decoding)
        assert ours.puts == expected.puts
        assert ours.ended == expected.ended == 1
    ours = Keep()
    torch.manual_seed(5)
    textguide.generate(build(name), TOKENIZER, PROMPT, max_new_tokens=NEW, streamer=ours)
    assert ours.puts == expected.puts
    assert ours.puts[0] == ([PAD] if name == "t5" else PROMPT)


def test_two_streamers_that_differ() -> None:
    with pytest.raises(ValueError, match="streamer= was passed to generate and to guided_decoding"):
        run({"streamer": Keep()}, custom_generate=guided_decoding(GUIDANCE, streamer=Keep()))


def test_caches_that_need_a_package_are_refused_before_it_is_missed() -> None:
    with pytest.raises(ValueError, match=r"cache_implementation='quantized' does not work with guided decoding"):
        textguide.generate(
            build("llama"), TOKENIZER, [PROMPT], GUIDANCE, max_new_tokens=2, cache_implementation="quantized"
        )


def test_remedies_name_classes_that_exist() -> None:
    names = {name for _, remedy in _OTHER_LOOPS.values() for name in re.findall(r"textguide\.([\w.]+)", remedy)}
    assert "guidance.ContrastiveDecoding" in names
    for name in names - {"generate"}:
        assert operator.attrgetter(name)(textguide)

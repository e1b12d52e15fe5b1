"""A guidance as JSON in a request: what is understood, what its branches read, and that whatever is wrong is named."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import textguide
from textguide.engine import branch_inputs
from textguide.guidance import (
    ACFG,
    APG,
    AWRS,
    CAIF,
    CFG,
    Composed,
    ContextAware,
    ContrastiveDecoding,
    CorrSynth,
    DExperts,
    DoLa,
    EAGer,
    FeynmanKac,
    Formula,
    Guidance,
    InstructionContrastive,
    TokenPerturbation,
    TokenPrior,
    split,
)
from textguide.guidance.base import BranchGuidance
from textguide.guidance.catalogue import example
from textguide.guidance.places import place
from textguide.guidance.priors import Prior, PriorFile
from textguide.logits_processors.vllm_plugin import validation
from textguide.logits_processors.vllm_plugin.arguments import parse
from textguide.logits_processors.vllm_plugin.engine_priors import described, named_prior
from textguide.logits_processors.vllm_plugin.request_guidance import (
    BRANCH_IDS,
    Reading,
    RequestPrompt,
    branches_of,
    parse_guidance,
)
from textguide.logits_processors.vllm_plugin.request_state import RequestState
from textguide.logits_processors.vllm_plugin.requests import Limits, Request

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tell me of dragons."}]


class Tokenizer:
    """One token a character; a chat is its turns with a mark in front of each."""

    chat_template = "{{ messages }}"
    bos_token_id, eos_token_id = 1, 0

    def __call__(self, text: str) -> Any:
        return SimpleNamespace(input_ids=[ord(c) for c in text])

    def apply_chat_template(self, messages: Any, **_: Any) -> Any:
        return {"input_ids": [i for turn in messages for i in [2, *(ord(c) for c in turn["content"])]]}


class Sentiment:
    def index(self, target: Any) -> int:
        if target not in ("positive", "negative"):
            raise ValueError(f"{target!r} is no class")
        return 0

    def log_prob(self, *_: Any) -> Any:
        raise NotImplementedError


LIMITS = Limits(Tokenizer(), 200, 64, Sentiment(), "sentiment", places=8, budget=64, blocks=64, block_size=4)
TEXT = "The dragon"
IDS = tuple(map(ord, TEXT))
GIVEN = RequestPrompt(IDS, TEXT)


def params(guidance: Any, **more: Any) -> Any:
    value = guidance if isinstance(guidance, (str, int, dict, list)) else guidance.to_json()
    return SimpleNamespace(extra_args={"guidance": value, **more}, logprobs=None, temperature=1.0, max_tokens=8)


def make(name: str) -> Guidance:
    """A usual setting; of one that reads a passage of the prompt, a passage that is there."""
    if name == "token-prior":
        return TokenPrior(2.0, prior={7: 0.2}, share=0.5)
    return ContextAware(2.0, context="gon") if name == "context-aware" else example(Guidance.registry[name])


BRANCHING = [name for name, kind in Guidance.registry.items() if issubclass(kind, BranchGuidance)]


@pytest.mark.parametrize("name", sorted(BRANCHING))
def test_branches_read_what_they_read_elsewhere(name: str) -> None:
    guidance = make(name)
    assert isinstance(guidance, BranchGuidance)
    if place("vllm").reason(guidance) is not None:
        with pytest.raises(ValueError, match=f"guidance '{name}' .*; use "):
            parse(params(guidance), LIMITS, GIVEN)
        return
    models = tuple(branch.model for branch in guidance.branches)
    asked = parse(params(guidance), replace(LIMITS, models=models), GIVEN)
    assert asked is not None
    assert asked.guidance == guidance
    assert Request.from_dict(json.loads(json.dumps(asked.to_dict()))) == asked
    rows = branch_inputs.branch_rows(guidance, cond=[list(IDS)], tokenizer=Tokenizer(), prompts=[TEXT])
    read = [(IDS, *asked.prompts)[place] for place, _ in asked.readings]
    assert read == [tuple(row) for (row,) in rows]
    assert [model for _, model in asked.readings] == [branch.model for branch in guidance.branches]


@pytest.mark.parametrize(
    ("spelled", "guidance"),
    [
        ("cfg:scale=2", CFG(2.0)),
        ('{"method": "apg", "scale": 2}', APG(2.0)),
        ({"method": "apg", "scale": 2}, APG(2.0)),
        ('[{"method": "cfg", "scale": 2}]', CFG(2.0)),
        ("formula:2*cond - last", Formula("2*cond - last")),
        ("plain", None),
        ("cfg:scale=1", None),
    ],
)
def test_guidance_as_it_is_spelled(spelled: Any, guidance: Any) -> None:
    asked = parse(params(spelled), LIMITS, GIVEN)
    assert (None if asked is None else asked.guidance) == guidance


def test_parts_act_together() -> None:
    parts = [CFG(2.0, "abc"), CAIF("sentiment", "positive", 3.0), CAIF("sentiment", "negative", -1.0, top_k=9)]
    for sent in ([part.to_dict() for part in parts], Composed(tuple(parts)).to_dict()):
        asked = parse(params(json.dumps(sent), guidance_effect=1), LIMITS, GIVEN)
        assert asked is not None
        assert (asked.guidance, asked.prompts, asked.effect) == (parts[0], (tuple(map(ord, "abc")),), True)
        assert [caif.weight for caif in asked.caif] == [3.0, -1.0]
        assert asked.caif[0].classifier is LIMITS.classifier
        assert Request.from_dict(json.loads(json.dumps(asked.to_dict())), LIMITS.classifier) == asked


def test_branches_that_read_the_same_share_a_request() -> None:
    formula = Formula("cond + M('big') - M('small', 'ab') - P('ab') + P('cd')")
    read, readings = branches_of(formula, GIVEN, Tokenizer())
    assert read == (Reading((97, 98)), Reading((99, 100)))
    assert readings == ((0, "big"), (1, "small"), (1, ""), (2, ""))


def test_what_branches_read_can_be_given() -> None:
    formula = Formula("2*cond - 0.5*last - 0.5*P('x')")
    for ids in ([[5], [6, 7]], "[[5], [6, 7]]"):
        asked = parse(params(formula, **{BRANCH_IDS: ids}), LIMITS, RequestPrompt(IDS))
        assert asked is not None
        assert asked.prompts == ((5,), (6, 7))
    for wrong in ([[5]], [5, 6], [[5], []], "[[5]", "x", [[5], ["a"]], [[5], [900]]):
        with pytest.raises(ValueError, match=f"{BRANCH_IDS}=|token id 900"):
            parse(params(formula, **{BRANCH_IDS: wrong}), LIMITS, RequestPrompt(IDS))
    with pytest.raises(ValueError, match=f"{BRANCH_IDS} needs guidance"):
        parse(SimpleNamespace(extra_args={BRANCH_IDS: [[5]]}, logprobs=None), LIMITS, GIVEN)


def test_chats_are_changed_as_chats() -> None:
    chat = [textguide.guidance.Message(**turn) for turn in MESSAGES]
    ids = tuple(Tokenizer().apply_chat_template(MESSAGES)["input_ids"])
    given = RequestPrompt(ids, tuple(chat), True)
    for guidance in (
        CFG(2.0, negative_system="Be long."),
        InstructionContrastive(2.0, instruction="Err. "),
        ContextAware(2.0, context="dragons"),
    ):
        asked = parse(params(guidance), LIMITS, given)
        rows = branch_inputs.branch_rows(guidance, cond=[list(ids)], tokenizer=Tokenizer(), prompts=[tuple(chat)])
        assert asked is not None
        assert asked.prompts == (tuple(rows[0][0]),)
        with pytest.raises(ValueError, match="of which only the tokens are known"):
            parse(params(guidance), LIMITS, RequestPrompt(ids, None, True))
        with pytest.raises(ValueError, match="makes other tokens of it"):
            parse(params(guidance), LIMITS, RequestPrompt(ids[1:], tuple(chat), True))
    assert parse(params(TokenPerturbation(2.0)), LIMITS, given) is not None


def test_what_vllm_holds_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SimpleNamespace(
        model_config=SimpleNamespace(get_vocab_size=lambda: 200, max_model_len=64),
        scheduler_config=SimpleNamespace(
            max_num_active_seqs=None,
            max_num_seqs=2,
            max_num_scheduled_tokens=None,
            max_num_batched_tokens=32,
            watermark=0.0,
        ),
        parallel_config=SimpleNamespace(data_parallel_size=1),
        cache_config=SimpleNamespace(num_gpu_blocks=32, block_size=4),
        additional_config=None,
    )

    class InputProcessor:
        vllm_config = config
        tokenizer = Tokenizer()

        def process_inputs(self, prompt: Any, params: Any, lora_request: Any = None) -> Any:
            validation.validate(params)
            return (params.extra_args or {}).get("textguide")

    class LLM:
        def chat(self, prompt: Any, params: Any) -> Any:
            return InputProcessor().process_inputs(prompt, params)

        enqueue_chat = chat

    validation.remember_inputs(InputProcessor)
    validation.remember_offline_chats(LLM)

    held = {"type": "token", "prompt_token_ids": list(IDS), "prompt": TEXT}
    edit = InstructionContrastive(2.0, instruction="Err. ")
    for prompt in (held, TEXT, {"prompt": TEXT}):
        asked = InputProcessor().process_inputs(prompt, params(edit))
        assert asked["prompts"] == [list(map(ord, "Err. The dragon"))]
    for prompt in ({"prompt_token_ids": list(IDS)}, list(IDS)):
        asked = InputProcessor().process_inputs(prompt, params(edit))
        assert asked["prompts"] == [list(map(ord, "Err. The dragon"))]
    ids = Tokenizer().apply_chat_template(MESSAGES)["input_ids"]
    sent = params(edit)
    sent.extra_args[validation.CHAT] = MESSAGES
    asked = InputProcessor().process_inputs({"type": "token", "prompt_token_ids": ids, "prompt": "rendered"}, sent)
    assert bytes(asked["prompts"][0]).decode() == "\x02Be brief.\x02Err. Tell me of dragons."
    assert validation.CHAT not in sent.extra_args  # it goes no further
    sent.extra_args[validation.CHAT] = [{"role": "user", "content": [{"type": "text", "text": "parts"}]}]
    with pytest.raises(ValueError, match="of which only the tokens are known"):
        InputProcessor().process_inputs({"type": "token", "prompt_token_ids": ids, "prompt": "rendered"}, sent)
    for chat in (LLM().chat, LLM().enqueue_chat):
        with pytest.raises(ValueError, match="of which only the tokens are known"):
            chat(held, params(edit))
    assert InputProcessor().process_inputs(held, params(edit))["prompts"] == [list(map(ord, "Err. The dragon"))]
    sent = params(edit)
    sent.extra_args[validation.CHAT] = validation.UNKNOWN_MESSAGES
    with pytest.raises(ValueError, match="of which only the tokens are known"):
        InputProcessor().process_inputs(held, sent)
    sent = params(CFG(2.0))
    sent.extra_args[validation.CHAT] = validation.UNKNOWN_MESSAGES
    for _ in range(2):  # the next turn of a response comes with the same object
        InputProcessor().process_inputs(prompt=held, params=sent)
        assert sent.extra_args[validation.CHAT] == validation.UNKNOWN_MESSAGES
    with pytest.raises(ValueError, match="arrived before textguide was loaded"):
        validation.validate(params(edit))
    with pytest.raises(ValueError, match="a prompt of embeddings has none"):
        InputProcessor().process_inputs({"type": "embeds", "prompt_embeds": None}, params(edit))
    with pytest.raises(ValueError, match="takes 3 places, and max_num_seqs is 2"):
        InputProcessor().process_inputs(held, params(Formula("cond + last - P('x')")))
    with pytest.raises(ValueError, match="may need 128 tokens of cache, and there is room for 124"):
        InputProcessor().process_inputs({**held, "prompt_token_ids": [5] * 64}, params(CFG(2.0, "x" * 63)))


def test_chat_requests_keep_their_messages() -> None:
    class Protocol:
        messages = MESSAGES

        def __init__(self, extra: Any) -> None:
            self.extra = extra

        def to_sampling_params(self, longest: int) -> Any:
            return SimpleNamespace(extra_args=self.extra, max_tokens=longest)

    for _ in range(2):  # a second time changes nothing
        validation.remember_chats(Protocol, messages_of=lambda request: request.messages)
    asked = Protocol({"guidance": "cfg"}).to_sampling_params(3)
    assert (asked.extra_args, asked.max_tokens) == ({"guidance": "cfg", validation.CHAT: MESSAGES}, 3)
    for extra in (None, {}, {"other": 1}):
        assert Protocol(extra).to_sampling_params(3).extra_args == extra


@pytest.mark.parametrize(
    ("guidance", "named"),
    [
        ("{", "guidance='{' is not JSON"),
        ("", "guidance '' is unknown"),
        ("cgf:scale=2", "guidance 'cgf' is unknown; did you mean cfg"),
        ("cfg:sclae=2", "guidance 'cfg:sclae=2': 'sclae' is not a field of cfg; did you mean scale"),
        ("secrets.json", "guidance='secrets.json': files are not read for a request"),
        ("cfg + /etc/secrets.json", "files are not read for a request"),
        ({"method": "cgf"}, "guidance: method='cgf' is not a guidance"),
        ({"scale": 2}, "guidance: method=None is not a guidance"),
        ({"method": "cfg", "sclae": 2}, "guidance: 'sclae' is not a field of cfg"),
        ({"method": "cfg", "scale": "high"}, "guidance: scale='high'"),
        ({"method": "cfg", "scale": [2]}, r"guidance: scale=\[2\]"),
        ('{"method": "cfg", "scale": NaN}', "guidance: scale=nan"),
        ({"method": "cfg", "negative_prompt": 5}, "guidance: negative_prompt=5"),
        ({"method": "cfg", "negative_prompt": [300]}, "token id 300; the vocabulary has 200"),
        ({"method": "cfg", "negative_prompt": "x" * 64}, "64 tokens, and the engine has room for 63"),
        ({"method": "cfg", "negative_prompt": ["a", "b"]}, "guidance: negative_prompt has 2 rows"),
        ({"method": "context-aware"}, "guidance: context-aware needs context; add it"),
        ({"method": "context-aware", "context": "wizard"}, "guidance: context='wizard' is not in the prompt"),
        ({"method": "formula", "expression": "cond +"}, "guidance: formula 'cond .*not understood"),
        ([{"method": "cfg"}, {"method": "apg"}], "guidance.*: two guidances with their own branches"),
        ([{"method": "cfg"}, 5], "guidance=5 is not a guidance"),
        (5, "guidance=5 is not a guidance"),
        ({"method": "caif", "classifier": "topics", "target": "a"}, "guidance: classifier='topics': this engine has"),
        ({"method": "caif", "classifier": "sentiment", "target": "a"}, "guidance: target='a': 'a' is no class"),
        ({"method": "awrs", "constraint": "python:os:system"}, "guidance: constraint=.* does not travel"),
        ({"method": "awrs", "constraint": "regex:a"}, "guidance: constraint='a' needs the engine's tokenizer"),
        ({"method": "awrs", "constraint": "regex:a", "particles": 0}, "guidance: particles=0"),
    ],
)
def test_what_is_wrong_is_named(guidance: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        parse(params(guidance if isinstance(guidance, (str, int)) else json.dumps(guidance)), LIMITS, GIVEN)


def test_texts_that_are_weighed() -> None:
    sent = [CFG(2.0), FeynmanKac(1)]
    asked = parse(params([part.to_dict() for part in sent]), LIMITS, GIVEN)
    assert asked is not None
    assert (asked.guidance, asked.weighs) == (CFG(2.0, renormalize=False), True)
    state = RequestState(asked)
    for log_weight, told in ((-2.0, -2.0), (-0.5, -2.5), (float("-inf"), None)):
        state.observe(True, {"kl": 0.0, "changed": False, "log_weight": log_weight})
        assert state.summary()["log_weight"] == told
    for wrong, named in (
        ([FeynmanKac(1)], "feynman-kac weighs texts by what normalising"),
        ([CFG(2.0), FeynmanKac(1, constraint="regex:a")], "constraint='regex:a' does not travel with feynman-kac"),
        ([ContrastiveDecoding(), FeynmanKac(1)], "use CFG or another guidance with renormalize"),
    ):
        with pytest.raises(ValueError, match=named):
            parse(params([part.to_dict() for part in wrong]), replace(LIMITS, models=("amateur",)), GIVEN)
    for field, value in (("temperature", 0.0), ("structured_outputs", {"regex": "a"})):
        greedy = params([part.to_dict() for part in sent])
        setattr(greedy, field, value)
        with pytest.raises(ValueError, match=f"{field}=.* does not work with feynman-kac"):
            parse(greedy, LIMITS, GIVEN)


@pytest.mark.parametrize("other", [{"guidance_scale": 2}, {"negative_prompt": "x"}, {"caif_target": "positive"}])
def test_two_ways_at_once_are_refused(other: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"guidance and {next(iter(other))} exclude each other"):
        parse(params("cfg:scale=2", **other), LIMITS, GIVEN)


@pytest.mark.parametrize(
    ("guidance", "reason"),
    [
        (DoLa(), "'dola' .*all layers of its model without changes.*; use textguide.generate"),
        (CorrSynth(), "'corrsynth' .*vLLM decides which requests share a step; use textguide.generate"),
        (
            ContrastiveDecoding(),
            "'contrastive' needs the model 'amateur', .* has none besides .*serve MODEL --with amateur=PATH",
        ),
        (DExperts(), "'dexperts' needs the model 'expert'"),
        (EAGer(), "'eager' forks texts"),
        (ACFG(), "'acfg' masks tokens of a text again.*textguide.diffusion.generate"),
    ],
)
def test_what_cannot_run_here_is_refused(guidance: Any, reason: str) -> None:
    sent = [one.to_dict() for one in guidance] if isinstance(guidance, list) else guidance
    with pytest.raises(ValueError, match=reason):
        parse(params(sent), LIMITS, GIVEN)


@pytest.mark.filterwarnings("ignore:skip_threshold:DeprecationWarning")
def test_every_field_with_every_kind_of_value_is_taken_or_refused_by_name() -> None:
    values = [None, True, -1, 0, 2.5, 10**400, float("inf"), "", "x", [], [1], [[1]], {}, {"a": 1}, ["a", "b"], [None]]
    taken = refused = 0
    for name in sorted(set(Guidance.registry) - {"composed"}):
        usual = make(name).to_dict()
        for field in fields(Guidance.registry[name]):  # type: ignore[arg-type]
            for value in values:
                sent = json.dumps({**usual, field.name: value})
                try:
                    parse(params(sent), LIMITS, GIVEN)
                    taken += 1
                except ValueError:
                    refused += 1
    assert min(taken, refused) > 100
    for junk in ("[" * 5000, "[" * 100000, '{"method": ' * 3000, "\ud800", "cfg:scale=\ud800"):
        with pytest.raises(ValueError, match="guidance"):
            parse_guidance(junk)


def test_short_arguments_and_json_ask_for_the_same() -> None:
    short = {"guidance_scale": 2, "negative_prompt": "ab", "guidance_stop": 0.5}
    spelled = parse(SimpleNamespace(extra_args=short, logprobs=None), LIMITS, GIVEN)
    asked = parse(params({"method": "cfg", "scale": 2, "stop": 0.5, "negative_prompt": "ab"}), LIMITS, GIVEN)
    assert spelled is not None
    assert asked is not None
    assert (spelled.prompts, spelled.readings) == (asked.prompts, asked.readings)
    assert spelled.guidance == CFG(2.0, stop=0.5)
    assert split(asked.guidance).branching == CFG(2.0, "ab", stop=0.5)
    assert parse(params(AWRS()), LIMITS, GIVEN) is None


def test_priors_are_named_when_the_engine_starts(tmp_path: Path) -> None:
    own = Prior(torch.randn(200), "tiny").save(tmp_path / "own.safetensors")
    other = Prior(torch.randn(9), "other").save(tmp_path / "other.safetensors")
    assert own.file is not None
    assert other.file is not None
    limits = replace(LIMITS, priors=described({"own": own.file, "other": other.file}))
    asked = parse(params("token-prior:prior=own,scale=2"), limits, GIVEN)
    assert asked is not None
    assert asked.guidance == TokenPrior(2.0, prior=PriorFile(own.file, own.fingerprint))
    assert asked.prompts == ()
    assert Request.from_dict(json.loads(json.dumps(asked.to_dict()))) == asked
    assert named_prior(TokenPrior(prior=own), limits.priors) == TokenPrior(prior="own")
    with pytest.raises(ValueError, match=r"belongs to other \(9 tokens\), and this model has 200"):
        parse(params("token-prior:prior=other"), limits, GIVEN)
    files: list[Any] = [own.file, "/etc/passwd", "", {"file": own.file, "fingerprint": None}, own.to_dict()]
    for value in files:
        with pytest.raises(ValueError, match="prior"):
            parse(params({"method": "token-prior", "prior": value}), limits, GIVEN)
        composed = [{"method": "token-prior", "prior": value}, {"method": "caif", "classifier": "sentiment"}]
        with pytest.raises(ValueError, match=r"prior|needs"):
            parse(params(composed), limits, GIVEN)
    with pytest.raises(ValueError, match=r"is not a prior of this engine, which has own, other, smollm2"):
        named_prior(TokenPrior(prior=Prior(torch.zeros(9))), limits.priors)

"""Tokens with which several branches start are read once, and only by branches that run the same model unchanged."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import textguide
from textguide import CFG
from textguide.engine.branch_passes import BranchPasses
from textguide.engine.model_views import part
from textguide.forward import low_rank, prefill, row_batch
from textguide.forward.model_adapter import adapter
from textguide.guidance import Branch
from textguide.guidance.views import Adapted, EarlyExit, MaskedHeads, Steered, View

from ..architectures import ENCODER_DECODER, NAMES, PAD, RECURRENT, VOCAB, Tokenizer, build

SYSTEM = [3 + (7 * n) % (VOCAB - 4) for n in range(20)]
EXAMPLES = [5 + (11 * n) % (VOCAB - 6) for n in range(12)]
PROMPTS = [[*SYSTEM, *EXAMPLES, 5, 6, 7], [*SYSTEM, *EXAMPLES, 8], [*SYSTEM, *EXAMPLES, 9, 10]]
NEGATIVES = [[*SYSTEM, 50], [*SYSTEM, 51, 52], [*SYSTEM, 50]]
TEXT = torch.tensor([[7, 22, 9, 14], [12, 13, 5, 40], [50, 3, 28, 9]])
CLOSE = {"atol": 2e-4, "rtol": 1e-4}

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(autouse=True)
def short_prefixes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefill, "COMPARED", 8)
    monkeypatch.setattr(prefill, "LEAST_SAVED", 10)


def tokens_read(model: Any, call: Callable[[], Any]) -> tuple[Any, int]:
    """What ``call`` returns, and how many tokens passed through the first layers of ``model`` and its views."""
    known = adapter(model)
    known.can_share_prefix(8, 12)  # the probes are not counted
    counted = [0]

    def count(_: Any, inputs: tuple[Tensor, ...]) -> None:
        counted[0] += inputs[0].numel()

    hook = model.get_input_embeddings().register_forward_pre_hook(count)
    try:
        return call(), counted[0]
    finally:
        hook.remove()


@torch.no_grad()
def prefilled(
    model: Any,
    branches: Sequence[Branch],
    texts: Sequence[Sequence[Sequence[int]]],
    cond: Sequence[Sequence[int]] = PROMPTS,
    **options: Any,
) -> tuple[BranchPasses, Tensor, Any]:
    passes = BranchPasses(model, branches, texts, **options)
    ids, mask = prefill.pad_left(cond, "cpu", PAD)
    mask = torch.ones_like(ids) if mask is None else mask
    return passes, ids, passes.prefill(ids, {"attention_mask": mask})


@torch.no_grad()
def check(
    run: tuple[BranchPasses, Tensor, Any], modules: Sequence[Any], texts: Sequence[Sequence[Sequence[int]]]
) -> None:
    """All logits of a run and of four more steps are those of texts that are read alone, without a cache."""
    passes, ids, logits = run
    for step in range(TEXT.shape[1] + 1):
        if step:
            logits = passes.step(torch.cat([ids, TEXT[: len(ids), :step]], dim=1), step)
        for number, (module, rows) in enumerate(zip(modules, texts, strict=True)):
            found = logits.cond if number == 0 else logits.extra[number - 1]
            for row, prompt in enumerate(rows):
                alone = torch.tensor([[*prompt, *TEXT[row, :step].tolist()]])
                expected = module(input_ids=alone, use_cache=False).logits[0, -1]
                torch.testing.assert_close(found[row], expected, **CLOSE)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ENCODER_DECODER])
def test_a_prefix_of_all_branches_is_read_once(name: str) -> None:
    model = build(name)
    texts = [PROMPTS, NEGATIVES, [prompt[-1:] for prompt in PROMPTS]]
    run, read = tokens_read(model, lambda: prefilled(model, (Branch(prompt=(1,)), Branch()), texts[1:]))
    if name in RECURRENT:
        assert read == sum(len(prompt) for prompt in (*PROMPTS, *NEGATIVES[:2])) + 3
    else:
        # The system prompt, the examples, and then each branch in a pass, at the length of its longest prompt.
        assert read == len(SYSTEM) + len(EXAMPLES) + 3 * 3 + 2 * 2 + 3
    check(run, [model] * 3, texts)


def test_equal_prompts_of_two_branches_are_read_once() -> None:
    model = build("llama")
    run, read = tokens_read(model, lambda: prefilled(model, (Branch(prompt=(1,)),), [PROMPTS[:1]], PROMPTS[:1]))
    assert read == len(PROMPTS[0])
    check(run, [model, model], [PROMPTS[:1], PROMPTS[:1]])


def test_samples_share_rows_with_another_branch() -> None:
    model = build("llama")
    cond = [PROMPTS[0]] * 3
    texts = [NEGATIVES[:1] * 3, cond]
    branches = (Branch(prompt=(1,)), Branch(same_prompt=True))
    run, read = tokens_read(model, lambda: prefilled(model, branches, texts, cond, copies=3))
    assert read == len(SYSTEM) + (len(PROMPTS[0]) - len(SYSTEM)) + 1
    (group,) = run[0].running.values()
    assert isinstance(group.rows, row_batch.SharedRows)
    assert group.rows.rows == 2
    check(run, [model] * 3, [cond, *texts])


def test_short_prefixes_are_read_by_every_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    monkeypatch.setattr(prefill, "LEAST_SAVED", 1000)
    run, read = tokens_read(model, lambda: prefilled(model, (Branch(prompt=(1,)),), [NEGATIVES]))
    assert read == 3 * len(PROMPTS[0]) + 2 * len(NEGATIVES[1])
    check(run, [model, model], [PROMPTS, NEGATIVES])


def _adapted(tmp_path: Path) -> Adapted:
    peft = pytest.importorskip("peft")

    adapted = peft.get_peft_model(copy.deepcopy(build("llama")), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=2.0)
    adapted.save_pretrained(tmp_path)
    card = {"scale": 2.0, "model": "llama", "model_fingerprint": low_rank.model_fingerprint(build("llama"))}
    (tmp_path / low_rank.CARD).write_text(json.dumps(card))
    return Adapted(str(tmp_path), 2.0)


VIEWS: dict[str, Callable[[Path], View]] = {
    "steered": lambda _: Steered(tuple(float(n % 5 - 2) for n in range(32)), (0,), 4.0),
    "early exit": lambda _: EarlyExit(1),
    "masked heads": lambda _: MaskedHeads(heads=((0, 1), (1, 2))),
    "adapter": _adapted,
}


@pytest.mark.parametrize("kind", VIEWS)
def test_a_model_with_a_change_inside_shares_nothing_with_the_whole_model(kind: str, tmp_path: Path) -> None:
    model = build("llama")
    view = VIEWS[kind](tmp_path)
    module = part(model, view)
    # The same tokens in every branch, the first two of which run the changed model.
    branches = (Branch(prompt=(1,), view=view), Branch(same_prompt=True, view=view), Branch(prompt=(2,)))
    texts = [PROMPTS, NEGATIVES, PROMPTS, NEGATIVES]
    run, read = tokens_read(model, lambda: prefilled(model, branches, texts[1:]))
    once = len(SYSTEM) + len(EXAMPLES) + 3 * 3 + 2 * 2
    # An adapter is inside a copy of the model, whose tokens are not counted.
    assert read == (once if kind == "adapter" else 2 * once)
    check(run, [model, module, module, model], texts)
    with torch.no_grad():
        ids = torch.tensor([PROMPTS[0]])
        apart = (module(input_ids=ids).logits - model(input_ids=ids).logits).abs().max()
    assert apart > 0.1  # otherwise this test could not fail


def test_a_change_inside_the_conditional_pass_is_not_shared_either() -> None:
    model = build("llama")
    view = VIEWS["steered"](Path())
    run, _ = tokens_read(model, lambda: prefilled(model, (Branch(same_prompt=True),), [PROMPTS], view=view))
    check(run, [part(model, view), model], [PROMPTS, PROMPTS])


def test_other_models_share_with_themselves_only() -> None:
    model = build("llama")
    amateur = build("llama", seed=1)
    branches = (Branch(same_prompt=True, model="amateur"), Branch(prompt=(1,), model="amateur"))
    texts = [PROMPTS, PROMPTS, NEGATIVES]

    def call() -> Any:
        return prefilled(model, branches, texts[1:], models={"amateur": amateur})

    (run, read), read_by_amateur = tokens_read(amateur, lambda: tokens_read(model, call))
    assert read == len(SYSTEM) + len(EXAMPLES) + 3 * 3
    assert read_by_amateur == len(SYSTEM) + len(EXAMPLES) + 3 * 3 + 2 * 2
    check(run, [model, amateur, amateur], texts)


def test_prompts_with_more_than_token_ids_are_not_shared() -> None:
    model = build("llama")
    ids = torch.tensor([PROMPTS[0]])
    mask = torch.ones_like(ids)
    assert prefill.as_token_ids(model, ids, {"attention_mask": mask}) == [PROMPTS[0]]
    assert prefill.as_token_ids(model, ids, {"attention_mask": mask, "pixel_values": torch.ones(1, 3, 4, 4)}) is None
    elsewhere = torch.arange(5, 5 + ids.shape[1])[None]
    assert prefill.as_token_ids(model, ids, {"attention_mask": mask, "position_ids": elsewhere}) is None
    assert prefill.as_token_ids(build("t5"), ids, {"attention_mask": mask}) is None


@pytest.mark.parametrize("count", [1, 3])  # transformers passes no mask for one prompt
@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "bloom"])
def test_texts_are_those_without_sharing(name: str, samples: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(name)
    negatives = [tuple(prompt) for prompt in NEGATIVES[:count]]
    options: dict[str, Any] = {"num_return_sequences": samples, "do_sample": samples > 1, "top_k": 1}

    def texts() -> list[list[int]]:
        guidance = CFG(1.5, negative_prompt=negatives)
        return textguide.generate(model, Tokenizer(), PROMPTS[:count], guidance, max_new_tokens=6, **options).new_tokens

    shared, read = tokens_read(model, texts)
    monkeypatch.setattr(prefill, "LEAST_SAVED", 10**9)
    alone, more = tokens_read(model, texts)
    assert shared == alone
    assert read <= more - len(SYSTEM)


def test_prefixes_form_a_tree() -> None:
    known = adapter(build("llama"))
    prompts = [tuple(prompt) for prompt in (*PROMPTS, *NEGATIVES[:2], [4, 5], SYSTEM)]
    root = prefill.prefix_tree(known, prompts, keep=1)
    assert (root.length, root.prompts) == (0, [(4, 5)])
    (system,) = root.longer
    assert system.length == len(SYSTEM)
    assert sorted(system.prompts) == sorted(prompts[3:5] + prompts[6:])
    (examples,) = system.longer
    assert examples.length == len(SYSTEM) + len(EXAMPLES)
    assert sorted(examples.prompts) == sorted(prompts[:3])
    # The logits of the last 20 tokens are needed, so that only the system prompt is worth a pass, if anything.
    root = prefill.prefix_tree(known, prompts[:3], keep=20)
    assert sorted(root.longer[0].prompts) == sorted(prompts[:3])
    assert root.longer[0].length == len(PROMPTS[0]) - 20
    assert prefill.prefix_tree(known, prompts[:3], keep=30).longer == []

"""Caches, lanes and passes against models that read the whole text again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from textguide.engine.branch_passes import Passes
from textguide.forward import caches, row_batch
from textguide.guidance import Branch

from ..architectures import ENCODER_DECODER, NAMES, PAD, RECURRENT, build

PROMPTS = ([5, 9, 33, 7, 20, 41, 8, 12], [11, 4, 52], [30, 31, 5, 6, 44])
NEGATIVES = ([17, 18, 19], [9, 9, 25, 7, 7, 13, 40], [50])
# What is "generated": fixed, so that every expectation can be computed alone.
TEXT = torch.tensor([[7, 22, 9, 14, 30, 41, 6, 19], [12, 13, 5, 40, 8, 27, 33, 4], [50, 3, 28, 9, 9, 16, 45, 21]])
CLOSE = {"atol": 2e-4, "rtol": 1e-4}
CAN_CROP = {"gpt2", "llama", "gpt_neox", "opt", "bloom", "t5", "bart"}


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def again(model: Any, prompt: list[int], written: list[int], every: bool = False) -> Tensor:
    """Logits behind the text, (V,), read anew; with ``every``, behind each written token too, (1 + k, V)."""
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            row = torch.tensor([[model.config.decoder_start_token_id, *written]])
            logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=row, use_cache=False).logits[0]
        else:
            logits = model(input_ids=torch.tensor([[*prompt, *written]]), use_cache=False).logits[0]
    return logits[-1 - len(written) :] if every else logits[-1]


def prefilled(model: Any, prompts: Any) -> tuple[row_batch.Lane, Tensor]:
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            outputs, mask = row_batch.encode(model, prompts, "cpu")
            start = torch.full((len(prompts), 1), model.config.decoder_start_token_id)
            return row_batch.prefill_encoder_decoder(model, start, outputs, mask)
        return row_batch.prefill(model, prompts, "cpu")


def forward(lane: row_batch.Lane, tokens: list[list[int]], keep: int = 1) -> Tensor:
    with torch.no_grad():
        return lane.forward(torch.tensor(tokens), keep)


def check(lane: row_batch.Lane, texts: list[tuple[list[int], list[int]]], tokens: list[int]) -> None:
    """Reading one token a row gives what reading everything again gives."""
    logits = forward(lane, [[token] for token in tokens])[:, -1]
    assert lane.rows == len(texts)
    for row, ((prompt, written), token) in enumerate(zip(texts, tokens, strict=True)):
        torch.testing.assert_close(logits[row], again(lane.model, prompt, [*written, token]), **CLOSE)


def test_prefill_and_steps(name: str) -> None:
    model = build(name)
    lane, logits = prefilled(model, PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        torch.testing.assert_close(logits[row, -1], again(model, prompt, []), **CLOSE)
    for step in range(6):
        check(lane, [(p, TEXT[r, :step].tolist()) for r, p in enumerate(PROMPTS)], TEXT[:, step].tolist())


def test_prefill_reads_equal_prompts_once(name: str) -> None:
    model = build(name)
    if name in ENCODER_DECODER:
        pytest.skip("an encoder-decoder's prompt is its source")
    rows: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda _, __, kwargs: rows.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    lane, _ = prefilled(model, [PROMPTS[1], PROMPTS[0], PROMPTS[1], PROMPTS[1]])
    hook.remove()
    assert sum(rows) == 2
    check(lane, [(PROMPTS[1], []), (PROMPTS[0], []), (PROMPTS[1], []), (PROMPTS[1], [])], [5, 6, 7, 8])


def test_a_chunk_equals_its_tokens(name: str) -> None:
    model = build(name)
    lane, _ = prefilled(model, PROMPTS)
    logits = forward(lane, TEXT[:, :4].tolist(), keep=4)
    for row, prompt in enumerate(PROMPTS):
        torch.testing.assert_close(logits[row], again(model, prompt, TEXT[row, :4].tolist(), True)[1:], **CLOSE)
    check(lane, [(p, TEXT[r, :4].tolist()) for r, p in enumerate(PROMPTS)], [9, 8, 7])


def test_merge(name: str) -> None:
    model = build(name)
    first, _ = prefilled(model, PROMPTS[:1])
    second, _ = prefilled(model, PROMPTS[1:])
    third, _ = prefilled(model, NEGATIVES[2:])

    lane = row_batch.merge([first, second, third])
    texts = [(prompt, []) for prompt in (*PROMPTS, NEGATIVES[2])]
    check(lane, texts, [4, 5, 6, 7])
    check(
        lane,
        [(prompt, [token]) for (prompt, _), token in zip(texts, [4, 5, 6, 7], strict=True)],
        [8, 9, 10, 11],
    )


def test_merging_one_is_itself() -> None:
    lane, _ = prefilled(build("llama"), PROMPTS)
    assert row_batch.merge([lane]) is lane
    assert caches.merge([lane.cache]) is lane.cache


def test_select(name: str) -> None:
    lane, _ = prefilled(build(name), PROMPTS)
    forward(lane, TEXT[:, :1].tolist())
    lane.select(torch.tensor([2, 0, 0]))
    texts = [(PROMPTS[r], TEXT[r, :1].tolist()) for r in (2, 0, 0)]
    check(lane, texts, [9, 8, 7])


def test_split_leaves_the_original_as_it_is(name: str) -> None:
    lane, _ = prefilled(build(name), PROMPTS)
    forward(lane, TEXT[:, :1].tolist())
    twin = lane.split(torch.tensor([2, 1]))
    check(twin, [(PROMPTS[r], TEXT[r, :1].tolist()) for r in (2, 1)], [9, 8])
    check(lane, [(p, TEXT[r, :1].tolist()) for r, p in enumerate(PROMPTS)], [5, 6, 7])
    check(twin, [(PROMPTS[r], [*TEXT[r, :1].tolist(), t]) for r, t in ((2, 9), (1, 8))], [20, 21])
    texts = [(p, [*TEXT[r, :1].tolist(), 5 + r]) for r, p in enumerate(PROMPTS)]
    check(lane, texts, [31, 32, 33])


def test_crop(name: str) -> None:
    lane, _ = prefilled(build(name), PROMPTS)
    for step in range(3):
        forward(lane, TEXT[:, step : step + 1].tolist())
    assert lane.crop(0)
    done = lane.crop(2)
    assert done is (name in CAN_CROP)
    # Where it cannot, nothing has changed.
    kept = 1 if done else 3
    check(lane, [(p, TEXT[r, :kept].tolist()) for r, p in enumerate(PROMPTS)], [9, 8, 7])


def test_recurrent_state_is_known(name: str) -> None:
    assert caches.has_recurrent_state(build(name)) is (name in RECURRENT)


def test_layers_that_cannot_be_merged_say_so() -> None:
    class Odd:
        layers = (object(),)

    with pytest.raises(ValueError, match=r"object cannot hold the rows.*CFGLogitsProcessor"):
        caches.merge([Odd(), Odd()])  # type: ignore[list-item]


def test_a_model_with_a_cache_of_its_own_is_refused() -> None:
    class Odd:
        def forward(self, input_ids: Any) -> Any:
            raise NotImplementedError

    with pytest.raises(ValueError, match="Odd does not keep its state"):
        caches.new_cache(Odd())


ONE = (Branch(),)


class Run:
    """A run of :class:`Passes` over the fixed text; every law is compared with one that is read anew."""

    def __init__(self, name: str, branches: Any = ONE, models: Any = None, prompts: Any = None) -> None:
        self.model = build(name)
        given = [[list(row) for row in NEGATIVES]] if prompts is None else prompts
        self.owners = [self.model, *((models or {}).get(b.model, self.model) for b in branches)]
        self.read = [PROMPTS, *given]
        self.passes = Passes(self.model, branches, given, models)
        if self.model.config.is_encoder_decoder:
            outputs, mask = row_batch.encode(self.model, PROMPTS, "cpu")
            self.start = torch.full((3, 1), self.model.config.decoder_start_token_id)
            kwargs = {"encoder_outputs": outputs, "attention_mask": mask}
        else:
            self.start, padding = row_batch.pad_left(PROMPTS, "cpu", PAD)
            kwargs = {"attention_mask": padding}
        self.new = 0
        self.alive = [0, 1, 2]
        self.asleep: dict[int, int] = {}  # sample: tokens its extra branches have read
        self.law = self.passes.prefill(self.start, kwargs)
        self.check()

    def expect(self, branch: int, sample: int, new: int | None = None) -> Tensor:
        written = TEXT[sample, : self.new if new is None else new].tolist()
        return again(self.owners[branch], list(self.read[branch][sample]), written)

    def check(self) -> None:
        awake = [sample for sample in self.alive if sample not in self.asleep]
        assert self.passes.sleepers() == sorted(self.asleep)
        for row, sample in enumerate(self.alive):
            torch.testing.assert_close(self.law.cond[row], self.expect(0, sample), **CLOSE)
        assert self.law.cond.shape[0] == len(self.alive)
        if not awake or len(self.owners) == 1:
            assert self.law.extra is None
            return
        rows = range(len(self.alive)) if self.law.awake is None else self.law.awake.tolist()
        assert [self.alive[row] for row in rows] == awake
        assert self.law.extra is not None
        assert self.law.extra.shape[:2] == (len(self.owners) - 1, len(awake))
        for branch in range(1, len(self.owners)):
            for column, sample in enumerate(awake):
                torch.testing.assert_close(self.law.extra[branch - 1, column], self.expect(branch, sample), **CLOSE)

    def step(self, waking: tuple[int, ...] = (), measure: bool = False) -> None:
        self.new += 1
        ids = torch.cat([self.start, TEXT[:, : self.new]], dim=1)
        slept = {sample: self.asleep.pop(sample) for sample in waking}
        self.law = self.passes.step(ids, self.new, waking, measure)
        self.check()
        if measure:
            self.check_woken(self.law.woken, slept)

    def check_woken(self, woken: Any, slept: dict[int, int]) -> None:
        assert sorted(sample for samples, _ in woken for sample in samples) == sorted(slept)
        for samples, logits in woken:
            assert logits.shape[:2] == (len(self.owners) - 1, len(samples))
            for column, sample in enumerate(samples):
                assert logits.shape[2] == self.new - slept[sample]
                for branch in range(1, len(self.owners)):
                    for k in range(logits.shape[2]):
                        expected = self.expect(branch, sample, slept[sample] + 1 + k)
                        torch.testing.assert_close(logits[branch - 1, column, k], expected, **CLOSE)

    def sleep(self, *samples: int) -> None:
        self.passes.sleep(samples)
        self.asleep.update(dict.fromkeys(samples, self.new))

    def drop(self, *samples: int) -> None:
        self.passes.drop(samples)
        self.alive = [sample for sample in self.alive if sample not in samples]
        self.asleep = {sample: read for sample, read in self.asleep.items() if sample not in samples}

    def reread(self, *samples: int) -> None:
        ids = torch.cat([self.start, TEXT[:, : self.new]], dim=1)
        woken = self.passes.reread(samples, ids, self.new)
        self.check_woken(woken, {sample: self.asleep.pop(sample) for sample in samples})


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


def test_plain_steps(name: str) -> None:
    run = Run(name)
    for _ in range(4):
        run.step()


def test_nobody_may_go_on(name: str) -> None:
    run = Run(name)
    run.step()
    run.passes.reindex({})
    assert run.passes.alive == []
    assert run.passes.sleepers() == []


def test_sleeping_and_waking(name: str) -> None:
    run = Run(name)
    run.step()
    run.sleep(1)
    run.step()
    run.sleep(0)
    run.step()
    run.step(waking=(1,), measure=True)
    run.step()
    run.step(waking=(0,), measure=True)
    run.step()


def test_all_sleep_and_wake_in_two_parts(name: str) -> None:
    run = Run(name)
    run.sleep(0, 1, 2)
    run.step()
    run.step()
    run.step(waking=(2, 0), measure=True)
    run.step(waking=(1,))
    run.step()


def test_finished_rows_leave(name: str) -> None:
    run = Run(name)
    run.step()
    run.sleep(2)
    run.drop(0)
    run.step()
    run.step(waking=(2,), measure=True)
    run.drop(1)
    run.step()
    run.sleep(2)
    run.step()
    run.reread(2)
    run.drop(2)
    assert run.passes.sleepers() == []
    assert run.passes.running == {}


def test_a_sleeper_that_leaves_is_gone() -> None:
    run = Run("llama")
    run.sleep(0, 1)
    run.step()
    run.drop(0)
    run.step()
    run.step(waking=(1,), measure=True)


def test_several_branches_and_models() -> None:
    branches = (
        Branch(prompt=(1,)),
        Branch(same_prompt=True, model="amateur"),
        Branch(prompt=(2,), model="amateur"),
    )
    prompts = [[list(row) for row in NEGATIVES], [list(row) for row in PROMPTS], [[9]] * 3]
    run = Run("llama", branches, {"amateur": build("gpt_neox")}, prompts)
    run.step()
    run.sleep(0, 2)
    run.step()
    run.step(waking=(2,), measure=True)
    run.drop(1)
    run.step(waking=(0,), measure=True)
    run.step()


def test_without_branches() -> None:
    run = Run("llama", (), None, [])
    run.step()
    run.drop(1)
    run.step()


def test_unknown_model_and_other_vocabulary() -> None:
    with pytest.raises(ValueError, match=r"'expert' is not among models= \(given: 'amateur'\)"):
        Passes(build("llama"), (Branch(model="expert"),), [[[1]]], {"amateur": build("llama")})
    from ..tiny_folder import make_model

    with pytest.raises(ValueError, match=r"'amateur' has 99 tokens.*61"):
        Run("llama", (Branch(model="amateur"),), {"amateur": make_model(99)}, [[[9]] * 3])

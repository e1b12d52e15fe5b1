"""Caches, row batches and passes against models that read the whole text again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from textguide.engine.branch_passes import BranchPasses
from textguide.forward import caches, prefill, row_batch
from textguide.forward.model_adapter import adapter
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


def prefilled(model: Any, prompts: Any) -> tuple[row_batch.Rows, Tensor]:
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            outputs, mask = prefill.encode(model, prompts, "cpu")
            start = torch.full((len(prompts), 1), model.config.decoder_start_token_id)
            return prefill.read_encoded(model, start, outputs, mask)
        return prefill.read_prompts(model, prompts, "cpu")


def forward(rows: row_batch.Rows, tokens: list[list[int]], keep: int = 1) -> Tensor:
    with torch.no_grad():
        return rows.forward(torch.tensor(tokens), keep)


def check(rows: row_batch.Rows, texts: list[tuple[list[int], list[int]]], tokens: list[int]) -> None:
    """Reading one token a row gives what reading everything again gives."""
    logits = forward(rows, [[token] for token in tokens])[:, -1]
    assert rows.rows == len(texts)
    for row, ((prompt, written), token) in enumerate(zip(texts, tokens, strict=True)):
        torch.testing.assert_close(
            logits[row], again(next(rows.batches()).model.base, prompt, [*written, token]), **CLOSE
        )


def test_prefill_and_steps(name: str) -> None:
    model = build(name)
    rows, logits = prefilled(model, PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        torch.testing.assert_close(logits[row, -1], again(model, prompt, []), **CLOSE)
    for step in range(6):
        check(rows, [(p, TEXT[r, :step].tolist()) for r, p in enumerate(PROMPTS)], TEXT[:, step].tolist())


def test_prefill_reads_equal_prompts_once(name: str) -> None:
    model = build(name)
    assert adapter(model).padding  # found out once per model, by passes that are not counted here
    if name in ENCODER_DECODER:
        pytest.skip("an encoder-decoder's prompt is its source")
    counted: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda _, __, kwargs: counted.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    rows, _ = prefilled(model, [PROMPTS[1], PROMPTS[0], PROMPTS[1], PROMPTS[1]])
    hook.remove()
    assert sum(counted) == 2
    check(rows, [(PROMPTS[1], []), (PROMPTS[0], []), (PROMPTS[1], []), (PROMPTS[1], [])], [5, 6, 7, 8])


def test_a_chunk_equals_its_tokens(name: str) -> None:
    model = build(name)
    rows, _ = prefilled(model, PROMPTS)
    logits = forward(rows, TEXT[:, :4].tolist(), keep=4)
    for row, prompt in enumerate(PROMPTS):
        torch.testing.assert_close(logits[row], again(model, prompt, TEXT[row, :4].tolist(), True)[1:], **CLOSE)
    check(rows, [(p, TEXT[r, :4].tolist()) for r, p in enumerate(PROMPTS)], [9, 8, 7])


def test_merge(name: str) -> None:
    model = build(name)
    first, _ = prefilled(model, PROMPTS[:1])
    second, _ = prefilled(model, PROMPTS[1:])
    third, _ = prefilled(model, NEGATIVES[2:])

    rows = row_batch.merge([first, second, third])
    texts = [(prompt, []) for prompt in (*PROMPTS, NEGATIVES[2])]
    check(rows, texts, [4, 5, 6, 7])
    check(
        rows,
        [(prompt, [token]) for (prompt, _), token in zip(texts, [4, 5, 6, 7], strict=True)],
        [8, 9, 10, 11],
    )


def test_merging_one_is_itself() -> None:
    rows, _ = prefilled(build("llama"), PROMPTS)
    assert row_batch.merge([rows]) is rows
    assert caches.merge([next(rows.batches()).cache]) is next(rows.batches()).cache


def test_select(name: str) -> None:
    rows, _ = prefilled(build(name), PROMPTS)
    forward(rows, TEXT[:, :1].tolist())
    rows.select(torch.tensor([2, 0, 0]))
    texts = [(PROMPTS[r], TEXT[r, :1].tolist()) for r in (2, 0, 0)]
    check(rows, texts, [9, 8, 7])


def test_split_leaves_the_original_as_it_is(name: str) -> None:
    rows, _ = prefilled(build(name), PROMPTS)
    forward(rows, TEXT[:, :1].tolist())
    twin = rows.split(torch.tensor([2, 1]))
    check(twin, [(PROMPTS[r], TEXT[r, :1].tolist()) for r in (2, 1)], [9, 8])
    check(rows, [(p, TEXT[r, :1].tolist()) for r, p in enumerate(PROMPTS)], [5, 6, 7])
    check(twin, [(PROMPTS[r], [*TEXT[r, :1].tolist(), t]) for r, t in ((2, 9), (1, 8))], [20, 21])
    texts = [(p, [*TEXT[r, :1].tolist(), 5 + r]) for r, p in enumerate(PROMPTS)]
    check(rows, texts, [31, 32, 33])


def test_crop(name: str) -> None:
    rows, _ = prefilled(build(name), PROMPTS)
    for step in range(3):
        forward(rows, TEXT[:, step : step + 1].tolist())
    assert rows.crop(0)
    done = rows.crop(2)
    assert done is (name in CAN_CROP)
    # Where it cannot, nothing has changed.
    kept = 1 if done else 3
    check(rows, [(p, TEXT[r, :kept].tolist()) for r, p in enumerate(PROMPTS)], [9, 8, 7])


def test_recurrent_state_is_known(name: str) -> None:
    assert caches.has_recurrent_state(build(name)) is (name in RECURRENT)


def test_layers_that_cannot_be_merged_say_so() -> None:
    class Odd:
        layers = (object(),)

    with pytest.raises(ValueError, match=r"object cannot hold the rows.*GuidanceLogitsProcessor"):
        caches.merge([Odd(), Odd()])  # type: ignore[list-item]


def test_a_model_with_a_cache_of_its_own_is_refused() -> None:
    class Odd:
        def forward(self, input_ids: Any) -> Any:
            raise NotImplementedError

    with pytest.raises(ValueError, match="Odd does not keep its state"):
        caches.new_cache(Odd())


ONE = (Branch(),)


class Run:
    """A run of :class:`BranchPasses` over the fixed text; all logits are compared with those that are read anew."""

    def __init__(self, name: str, branches: Any = ONE, models: Any = None, prompts: Any = None) -> None:
        self.model = build(name)
        given = [[list(row) for row in NEGATIVES]] if prompts is None else prompts
        self.readers = [self.model, *((models or {}).get(b.model, self.model) for b in branches)]
        self.prompts = [PROMPTS, *given]
        self.passes = BranchPasses(self.model, branches, given, models)
        if self.model.config.is_encoder_decoder:
            outputs, mask = prefill.encode(self.model, PROMPTS, "cpu")
            self.start = torch.full((3, 1), self.model.config.decoder_start_token_id)
            kwargs = {"encoder_outputs": outputs, "attention_mask": mask}
        else:
            self.start, padding = prefill.pad_left(PROMPTS, "cpu", PAD)
            kwargs = {"attention_mask": padding}
        self.new = 0
        self.alive = [0, 1, 2]
        self.logits = self.passes.prefill(self.start, kwargs)
        self.check()

    @property
    def ids(self) -> Tensor:
        return torch.cat([self.start, TEXT[:, : self.new]], dim=1)

    def expect(self, branch: int, sample: int, new: int | None = None) -> Tensor:
        written = TEXT[sample, : self.new if new is None else new].tolist()
        return again(self.readers[branch], list(self.prompts[branch][sample]), written)

    def check(self) -> None:
        for row, sample in enumerate(self.alive):
            torch.testing.assert_close(self.logits.cond[row], self.expect(0, sample), **CLOSE)
        assert self.logits.cond.shape[0] == len(self.alive)
        if self.passes.resting or len(self.readers) == 1:
            assert self.logits.extra is None
            return
        assert self.logits.extra is not None
        assert self.logits.extra.shape[:2] == (len(self.readers) - 1, len(self.alive))
        for branch in range(1, len(self.readers)):
            for row, sample in enumerate(self.alive):
                torch.testing.assert_close(self.logits.extra[branch - 1, row], self.expect(branch, sample), **CLOSE)

    def step(self, with_branches: bool = True) -> None:
        self.new += 1
        self.logits = self.passes.step(self.ids, self.new, with_branches)
        self.check()

    def resume(self) -> None:
        self.step()
        assert not self.passes.resting

    def drop(self, *samples: int) -> None:
        self.passes.drop(samples)
        self.alive = [sample for sample in self.alive if sample not in samples]


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
    assert run.passes.running == run.passes.resting == {}


def test_branches_rest_and_resume(name: str) -> None:
    run = Run(name)
    run.step()
    run.step(with_branches=False)
    run.step(with_branches=False)
    run.resume()
    run.step()
    run.step(with_branches=False)
    run.resume()
    run.step()


def test_branches_may_rest_from_the_first_step_on(name: str) -> None:
    run = Run(name)
    run.passes.rest()
    run.step(with_branches=False)
    run.step(with_branches=False)
    run.resume()
    run.step()


def test_finished_rows_leave(name: str) -> None:
    run = Run(name)
    run.step()
    run.drop(0)
    run.step()
    run.step(with_branches=False)
    run.drop(1)
    run.step(with_branches=False)
    run.resume()
    run.step()
    run.drop(2)
    assert run.passes.running == {}


def test_rows_go_on_from_others_while_branches_rest() -> None:
    run = Run("llama")
    run.step()
    run.passes.rest()
    run.passes.reindex({0: 2, 2: 2})
    run.alive = [0, 2]
    run.prompts = [[prompts[2], prompts[1], prompts[2]] for prompts in run.prompts]
    TEXT_OF_TWO = TEXT.clone()
    TEXT_OF_TWO[0] = TEXT[2]
    run.new += 1
    ids = torch.cat([run.start, TEXT_OF_TWO[:, : run.new]], dim=1)
    logits = run.passes.step(ids, run.new)
    assert logits.extra is not None
    torch.testing.assert_close(logits.extra[0, 0], logits.extra[0, 1], **CLOSE)
    torch.testing.assert_close(logits.extra[0, 1], run.expect(1, 2), **CLOSE)


def test_several_branches_and_models() -> None:
    branches = (
        Branch(prompt=(1,)),
        Branch(same_prompt=True, model="amateur"),
        Branch(prompt=(2,), model="amateur"),
    )
    prompts = [[list(row) for row in NEGATIVES], [list(row) for row in PROMPTS], [[9]] * 3]
    run = Run("llama", branches, {"amateur": build("gpt_neox")}, prompts)
    run.step()
    run.step(with_branches=False)
    run.resume()
    run.drop(1)
    run.step()
    run.step(with_branches=False)
    run.resume()


def test_without_branches() -> None:
    run = Run("llama", (), None, [])
    run.step()
    run.drop(1)
    run.step()


def test_unknown_model_and_other_vocabulary() -> None:
    with pytest.raises(ValueError, match=r"'expert' is not among models= \(given: 'amateur'\)"):
        BranchPasses(build("llama"), (Branch(model="expert"),), [[[1]]], {"amateur": build("llama")})
    from ..tiny_folder import make_model

    with pytest.raises(ValueError, match=r"'amateur' has 99 tokens.*61"):
        Run("llama", (Branch(model="amateur"),), {"amateur": make_model(99)}, [[[9]] * 3])

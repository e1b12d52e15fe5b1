"""The other form of small matrix products: the same numbers, and no trace outside."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import textguide
from textguide import CFG
from textguide.forward import small_matmul
from textguide.forward.model_adapter import adapter

from ..architectures import Tokenizer, build

LINEAR = torch.nn.functional.linear


def fast_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """The product of a fast layer with these weights; a real layer would only accept parameters."""
    layer: Any = SimpleNamespace(weight=weight, bias=bias)
    return small_matmul.FastLinear.forward(layer, x)


@pytest.fixture(autouse=True)
def _on(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TEXTGUIDE_SMALL_MATMUL", "1")
    small_matmul.machine_gains.cache_clear()
    yield
    small_matmul.machine_gains.cache_clear()
    assert torch.nn.functional.linear is LINEAR


class Calls:
    """Counts products in the other forms."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        product = small_matmul.onednn()

        def counted(function: Any) -> Any:
            def counting(*arguments: Any) -> Any:
                self.count += 1
                return function(*arguments)

            return counting

        monkeypatch.setattr(torch, "mm", counted(torch.mm))
        if product is not None:
            counting = counted(product)
            monkeypatch.setattr(small_matmul, "onednn", lambda: counting)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


SHAPES = [
    (5,),
    (1, 5),
    (2, 5),
    (16, 5),
    (17, 5),
    (2, 3, 5),
    (2, 8, 5),
    (3, 1, 2, 5),
    (40, 5),
    (0, 5),
    (2, 0, 5),
]


@pytest.fixture(params=["", "without oneDNN"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param:
        monkeypatch.setattr(small_matmul, "onednn", lambda: None)
    elif small_matmul.onednn() is None:
        pytest.skip("this torch has no oneDNN")


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("outputs", [1, 7])
def test_equals_torch(shape: tuple[int, ...], bias: bool, outputs: int, calls: Calls) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, generator=generator)
    weight = torch.randn(outputs, 5, generator=generator)
    b = torch.randn(outputs, generator=generator) if bias else None
    kept = [t.clone() for t in (x, weight, b) if t is not None]
    expected = LINEAR(x, weight, b)
    result = fast_linear(x, weight, b)
    assert result.shape == expected.shape
    assert result.is_contiguous()
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)
    rows, transposed = x.numel() // 5, small_matmul.onednn() is None
    assert calls.count == (rows > 0 and (not transposed or rows <= small_matmul.LARGEST))
    for before, now in zip(kept, [t for t in (x, weight, b) if t is not None], strict=True):
        assert torch.equal(before, now)


def test_inputs_that_are_not_contiguous(calls: Calls) -> None:
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(4, 10, generator=generator)
    inputs = [wide[:, ::2], wide.t()[:5].t(), wide.expand(2, 4, 10)[..., :5], wide[:, :5].flip(0)]
    weights = [torch.randn(5, 6, generator=generator).t(), torch.randn(6, 10, generator=generator)[:, ::2]]
    for x in inputs:
        for weight in weights:
            result = fast_linear(x, weight)
            torch.testing.assert_close(result, LINEAR(x, weight), atol=1e-5, rtol=1e-5)
    assert calls.count == len(inputs) * len(weights)


def test_a_weight_of_one_dimension() -> None:
    x, weight = torch.randn(2, 3, 5), torch.randn(5)
    torch.testing.assert_close(fast_linear(x, weight), LINEAR(x, weight))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_take_the_original(dtype: torch.dtype, calls: Calls) -> None:
    x, weight = torch.randn(2, 5).to(dtype), torch.randn(7, 5).to(dtype)
    assert torch.equal(fast_linear(x, weight), LINEAR(x, weight))
    assert calls.count == 0


def test_a_copy_uses_it_and_its_model_does_not(calls: Calls) -> None:
    model, x = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.ReLU()), torch.randn(2, 5)
    with torch.no_grad():
        fast = small_matmul.fast_copy(model)
        model(x)
        assert calls.count == 0
        torch.testing.assert_close(fast(x), model(x))
        assert calls.count == 1
        model[0].weight.mul_(2)  # shared
        torch.testing.assert_close(fast(x), model(x))
    assert type(model[0]) is torch.nn.Linear
    assert fast[0].weight is model[0].weight


def test_other_threads_use_their_model_as_it_is(calls: Calls) -> None:
    model = build("llama")
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        expected = model(ids).logits
        results: list[torch.Tensor] = []
        done = threading.Event()

        def other() -> None:
            with torch.no_grad():
                while not done.is_set():
                    results.append(model(ids).logits)

        thread = threading.Thread(target=other)
        thread.start()
        textguide.generate(model, Tokenizer(), [[5, 9, 7]], CFG(1.5), max_new_tokens=5)
        done.set()
        thread.join()
    assert calls.count > 0
    assert results
    assert all(torch.equal(logits, expected) for logits in results)


class Wrapped(torch.Tensor):
    """A tensor that computes in a way of its own, as quantised weights do."""

    @classmethod
    def __torch_function__(cls, function: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is small_matmul.onednn() or function in (torch.mm, torch.addmm):
            raise NotImplementedError("no product but linear")
        return super().__torch_function__(function, kinds, args, kwargs or {})


def test_quantised_and_changed_layers_are_left_alone(calls: Calls) -> None:
    class Own(torch.nn.Linear):
        pass

    quantised = torch.nn.Linear(5, 7)
    quantised.weight = torch.nn.Parameter(quantised.weight.detach().as_subclass(Wrapped), requires_grad=False)
    hooked = torch.nn.Linear(7, 7)
    hooked.forward = lambda x: LINEAR(x, hooked.weight, hooked.bias)  # type: ignore[method-assign]
    model = torch.nn.Sequential(quantised, Own(7, 7), hooked, torch.nn.Linear(7, 3, dtype=torch.float64))
    assert not small_matmul.helps(model)
    fast = small_matmul.fast_copy(model)
    assert [type(layer) for layer in fast] == [type(layer) for layer in model]
    with torch.no_grad():
        fast[:3](torch.randn(2, 5))
    assert calls.count == 0


def test_a_new_copy_is_made_if_the_model_has_changed() -> None:
    model = build("gpt_neox", seed=3)
    known = adapter(model)
    first = known.fast_copy
    assert first is known.fast_copy is not model
    before = model.lm_head
    model.lm_head = torch.nn.Linear(before.in_features, before.out_features, bias=False)
    assert known.fast_copy is not first
    assert known.fast_copy.lm_head.weight is model.lm_head.weight
    model.lm_head = before
    hooked: list[int] = []
    with model.register_forward_hook(lambda *_: hooked.append(1)):
        known.fast_copy(torch.tensor([[5]]))
    assert hooked  # hooks are shared


@pytest.mark.parametrize("rows", [1, 2, 5, 40])
def test_gradients_flow(rows: int) -> None:
    x, weight, bias = (torch.randn(*shape, requires_grad=True) for shape in ((rows, 5), (7, 5), (7,)))
    fast_linear(x, weight, bias).square().sum().backward()
    grads = [t.grad.clone() for t in (x, weight, bias) if t.grad is not None]
    for t in (x, weight, bias):
        t.grad = None
    LINEAR(x, weight, bias).square().sum().backward()
    for grad, t in zip(grads, (x, weight, bias), strict=True):
        torch.testing.assert_close(grad, t.grad)


def test_a_torch_without_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    small_matmul.onednn.cache_clear()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert small_matmul.onednn() is None
    small_matmul.onednn.cache_clear()


@pytest.mark.parametrize(("switch", "on"), [("0", False), ("1", True)])
def test_switch(switch: str, on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTGUIDE_SMALL_MATMUL", switch)
    small_matmul.machine_gains.cache_clear()
    assert small_matmul.machine_gains() is on
    model = build("llama", seed=4)
    assert (adapter(model).fast_copy is not model) is on


@pytest.mark.parametrize(
    ("mkl", "cpuinfo", "helps"),
    [
        (True, "vendor_id : AuthenticAMD", True),
        (True, "vendor_id : GenuineIntel", False),
        (False, "vendor_id : AuthenticAMD", False),
        (True, None, False),
    ],
)
def test_without_a_switch_the_machine_decides(
    mkl: bool, cpuinfo: str | None, helps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(_: Any) -> str:
        if cpuinfo is None:
            raise FileNotFoundError
        return cpuinfo

    monkeypatch.delenv("TEXTGUIDE_SMALL_MATMUL")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    monkeypatch.setattr(small_matmul.Path, "read_text", read)
    small_matmul.machine_gains.cache_clear()
    assert small_matmul.machine_gains() is helps

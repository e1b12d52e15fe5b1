"""The other form of small matrix products: the same numbers, and no trace outside."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from textguide.forward import small_matmul

LINEAR = torch.nn.functional.linear
CPU = SimpleNamespace(device=torch.device("cpu"))


@pytest.fixture(autouse=True)
def _on(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TEXTGUIDE_SMALL_MATMUL", "1")
    small_matmul.helps.cache_clear()
    yield
    small_matmul.helps.cache_clear()
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
    with small_matmul.enabled(CPU):
        result = torch.nn.functional.linear(x, weight, b)
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
    with small_matmul.enabled(CPU):
        for x in inputs:
            for weight in weights:
                result = torch.nn.functional.linear(x, weight)
                torch.testing.assert_close(result, LINEAR(x, weight), atol=1e-5, rtol=1e-5)
    assert calls.count == len(inputs) * len(weights)


def test_a_weight_of_one_dimension() -> None:
    x, weight = torch.randn(2, 3, 5), torch.randn(5)
    with small_matmul.enabled(CPU):
        torch.testing.assert_close(torch.nn.functional.linear(x, weight), LINEAR(x, weight))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_take_the_original(dtype: torch.dtype, calls: Calls) -> None:
    x, weight = torch.randn(2, 5).to(dtype), torch.randn(7, 5).to(dtype)
    with small_matmul.enabled(CPU):
        assert torch.equal(torch.nn.functional.linear(x, weight), LINEAR(x, weight))
    assert calls.count == 0


def test_layers_use_it_inside_and_not_outside(calls: Calls) -> None:
    layer, x = torch.nn.Linear(5, 7), torch.randn(2, 5)
    with torch.no_grad():
        layer(x)
        assert calls.count == 0
        with small_matmul.enabled(CPU):
            layer(x)
        assert calls.count == 1
        layer(x)
    assert calls.count == 1


@pytest.mark.parametrize("rows", [1, 2, 5, 40])
def test_gradients_flow(rows: int) -> None:
    x, weight, bias = (torch.randn(*shape, requires_grad=True) for shape in ((rows, 5), (7, 5), (7,)))
    with small_matmul.enabled(CPU):
        torch.nn.functional.linear(x, weight, bias).square().sum().backward()
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


def test_nested_use(calls: Calls) -> None:
    x, weight = torch.randn(2, 5), torch.randn(7, 5)
    with small_matmul.enabled(CPU):
        with small_matmul.enabled(CPU):
            torch.nn.functional.linear(x, weight)
        torch.nn.functional.linear(x, weight)
        assert calls.count == 2
    assert torch.nn.functional.linear is LINEAR


def test_restored_after_an_exception(calls: Calls) -> None:
    with pytest.raises(RuntimeError, match="inside"), small_matmul.enabled(CPU):
        raise RuntimeError("inside")
    assert torch.nn.functional.linear is LINEAR
    small_matmul.linear(torch.randn(2, 5), torch.randn(7, 5))
    assert calls.count == 0
    # And the next use works as the first did.
    with small_matmul.enabled(CPU):
        torch.nn.functional.linear(torch.randn(2, 5), torch.randn(7, 5))
    assert calls.count == 1


def test_other_threads_keep_the_original(calls: Calls) -> None:
    x, weight = torch.randn(2, 5), torch.randn(7, 5)
    results = []

    def other() -> None:
        results.append(torch.nn.functional.linear(x, weight))

    with small_matmul.enabled(CPU):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert calls.count == 0
    assert torch.equal(results[0], LINEAR(x, weight))


def test_a_thread_that_leaves_does_not_switch_another_off(calls: Calls) -> None:
    x, weight = torch.randn(2, 5), torch.randn(7, 5)
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with small_matmul.enabled(CPU):
            inside.set()
            leave.wait(10)
            torch.nn.functional.linear(x, weight)

    thread = threading.Thread(target=other)
    with small_matmul.enabled(CPU):
        thread.start()
        assert inside.wait(10)
    # The other thread is inside still; this one is out.
    torch.nn.functional.linear(x, weight)
    assert calls.count == 0
    leave.set()
    thread.join()
    assert calls.count == 1
    assert torch.nn.functional.linear is LINEAR


def test_other_devices_are_left_alone() -> None:
    with small_matmul.enabled(SimpleNamespace(device=torch.device("meta"))):
        assert torch.nn.functional.linear is LINEAR


@pytest.mark.parametrize(("switch", "on"), [("0", False), ("1", True)])
def test_switch(switch: str, on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTGUIDE_SMALL_MATMUL", switch)
    small_matmul.helps.cache_clear()
    assert small_matmul.helps() is on
    with small_matmul.enabled(CPU):
        assert (torch.nn.functional.linear is not LINEAR) is on


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
    small_matmul.helps.cache_clear()
    assert small_matmul.helps() is helps

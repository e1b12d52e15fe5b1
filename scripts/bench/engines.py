"""Engines of several devices, or that schedule steps ahead, with guidance on: on a CPU they share its cores."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # of each worker
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # else each worker wants a memory node of its own

# Without a compiled pass, vLLM's CPU worker loses what the first stage hands over.
STAGES = {
    "pipeline_parallel_size": 2,
    "enforce_eager": False,
    "compilation_config": {"mode": 2, "backend": "eager"},
}
PARALLEL: dict[str, dict[str, Any]] = {
    "one device": {},
    "two tensor ranks": {"tensor_parallel_size": 2},
    "three tensor ranks": {"tensor_parallel_size": 3},
    "two stages": STAGES,
    "two tensor ranks of two stages": {"tensor_parallel_size": 2, **STAGES},
    "two data ranks": {"data_parallel_size": 2},
    "steps ahead": {"async_scheduling": True},
}
"""What differs from an engine of one device."""
TINY = "textguide-tiny-llama"
"""The folder of :func:`tiny_llama`, among temporary ones."""


def tiny_llama(folder: Path, seed: int = 0) -> str:
    """A random Llama of 4 layers and 4 heads with the bundled model's tokens, which two ranks or stages can share."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from textguide.models import bundled

    tokenizer = AutoTokenizer.from_pretrained(str(bundled.folder()))
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=256, tie_word_embeddings=True,
        initializer_range=0.2, bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def low_rank(model: str, folder: Path, seed: int, rank: int = 4, strength: float = 0.5) -> str:
    """A random adapter of ``model``, in ``folder``; ``strength`` scales its weights."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank, lora_alpha=rank, target_modules=["q_proj", "v_proj", "o_proj", "down_proj"], init_lora_weights=False
    )
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), config)
    with torch.no_grad():
        for name, weights in adapted.named_parameters():
            if "lora_B" in name:
                weights.mul_(strength)
    adapted.save_pretrained(folder)
    return str(folder)


def start(model: str, **options: Any) -> Any:
    """An engine with the methods of vLLM's own that take requests and give answers step by step.

    Args:
        model: as for :func:`textguide.vllm_engine`.
        **options: as there.
    """
    import textguide

    options = {"dtype": "float32", "enforce_eager": True, "seed": 0, **options}
    if options.get("async_scheduling"):
        allow_steps_ahead()
    if options.get("data_parallel_size", 1) > 1:
        return DataRanks(model, options)
    return textguide.vllm_engine(model, disable_log_stats=False, **options).llm_engine


def close(engine: Any) -> None:
    """End an engine's processes."""
    core = getattr(engine, "engine_core", None)
    (engine if core is None else core).shutdown()


def allow_steps_ahead() -> None:
    """Let vLLM schedule steps ahead on a CPU, where it switches that off, in this process."""
    from vllm.platforms.cpu import CpuPlatform

    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    settle = CpuPlatform.check_and_update_config.__func__
    if getattr(settle, "keeps", False):
        return

    def check_and_update_config(cls: Any, config: Any) -> None:
        wanted = config.scheduler_config.async_scheduling
        settle(cls, config)
        config.scheduler_config.async_scheduling = wanted

    check_and_update_config.keeps = True  # type: ignore[attr-defined]
    CpuPlatform.check_and_update_config = classmethod(check_and_update_config)


class DataRanks:
    """Several engines behind vLLM's own load balancer, which runs in an event loop alone; called like one engine.

    Args:
        model: as for :func:`textguide.vllm_engine`.
        options: as there.
    """

    def __init__(self, model: str, options: dict[str, Any]) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.lora.request import LoRARequest
        from vllm.v1.engine.async_llm import AsyncLLM

        from textguide.logits_processors.vllm_plugin.adapters import adapters_of
        from textguide.logits_processors.vllm_plugin.options import prepared

        arguments = AsyncEngineArgs(**prepared(model, **options))
        self.arrived: queue.Queue[Any] = queue.Queue()
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

        async def make() -> Any:
            return AsyncLLM.from_engine_args(arguments)

        self.engine = self._call(make())
        self.logger_manager, self.vllm_config = self.engine.logger_manager, self.engine.vllm_config
        self.tasks: dict[str, Any] = {}
        for adapter in adapters_of(self.vllm_config).values():
            if adapter.number:
                self._call(self.engine.add_lora(adapter.request(LoRARequest)))

    def add_request(self, name: str, prompt: Any, params: Any, lora_request: Any = None) -> str:
        """Hand a request over."""

        async def answer() -> None:
            try:
                async for output in self.engine.generate(prompt, params, name, lora_request=lora_request):
                    self.arrived.put(output)
            except Exception as error:
                self.arrived.put(error)

        self.tasks[name] = asyncio.run_coroutine_threadsafe(answer(), self.loop)
        return name

    def step(self) -> list[Any]:
        """What has arrived since; waits for something.

        Raises:
            Exception: a request ended with it.
        """
        outputs = [self.arrived.get(timeout=600)]
        while not self.arrived.empty():
            outputs.append(self.arrived.get())
        for output in outputs:
            if isinstance(output, Exception):
                raise output
        return outputs

    def abort_request(self, names: list[str], internal: bool = False) -> None:
        """The clients went away."""
        for name in names:
            self._call(self.engine.abort(name))

    def shutdown(self) -> None:
        """End all processes."""
        self.loop.call_soon_threadsafe(self.engine.shutdown)
        self.loop.call_soon_threadsafe(self.loop.stop)

    def _call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout=900)

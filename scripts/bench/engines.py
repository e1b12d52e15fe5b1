"""vLLM engines with several devices or with steps scheduled ahead, under guidance. On a CPU they share its cores."""

from __future__ import annotations

import asyncio
import os
import queue
import tempfile
import threading
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # per worker
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # otherwise each worker needs its own memory node

# Without a compiled pass, vLLM's CPU worker loses the output of the first stage.
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
"""Options that differ from an engine with one device."""
TINY = Path(tempfile.gettempdir()) / "textguide-tiny-llama"
"""The folder of :func:`tiny_llama`."""


def tiny_llama(folder: Path = TINY, seed: int = 0) -> str:
    """A random Llama of 4 layers and 4 heads with the bundled model's tokens, which two ranks or stages can share."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from textguide.models import bundled

    tokenizer = AutoTokenizer.from_pretrained(str(bundled.folder()))
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
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
    """An engine with the methods of vLLM's own: it accepts requests and returns outputs step by step.

    Args:
        model: as for :func:`textguide.vllm_engine`.
        **options: likewise.
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
    """Let vLLM schedule steps ahead on a CPU in this process, although it switches that off there."""
    from vllm.platforms.cpu import CpuPlatform

    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    original = CpuPlatform.check_and_update_config.__func__
    if getattr(original, "keeps_async", False):
        return

    def check_and_update_config(cls: Any, config: Any) -> None:
        is_async = config.scheduler_config.async_scheduling
        original(cls, config)
        config.scheduler_config.async_scheduling = is_async

    check_and_update_config.keeps_async = True
    CpuPlatform.check_and_update_config = classmethod(check_and_update_config)


class DataRanks:
    """Several engines with vLLM's own load balancer, which needs an event loop; called like one engine.

    Args:
        model: as for :func:`textguide.vllm_engine`.
        options: likewise.
    """

    def __init__(self, model: str, options: dict[str, Any]) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.lora.request import LoRARequest
        from vllm.v1.engine.async_llm import AsyncLLM

        from textguide.logits_processors.vllm_plugin.adapters import adapters_of
        from textguide.logits_processors.vllm_plugin.options import prepared

        arguments = AsyncEngineArgs(**prepared(model, **options))
        self.outputs: queue.Queue[Any] = queue.Queue()
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
        """Send a request."""

        async def answer() -> None:
            try:
                async for output in self.engine.generate(prompt, params, name, lora_request=lora_request):
                    self.outputs.put(output)
            except Exception as error:
                self.outputs.put(error)

        self.tasks[name] = asyncio.run_coroutine_threadsafe(answer(), self.loop)
        return name

    def step(self) -> list[Any]:
        """The outputs that arrived since the last call; waits for the first.

        Raises:
            Exception: the exception that a request ended with.
        """
        outputs = [self.outputs.get(timeout=600)]
        while not self.outputs.empty():
            outputs.append(self.outputs.get())
        for output in outputs:
            if isinstance(output, Exception):
                raise output
        return outputs

    def abort_request(self, names: list[str], internal: bool = False) -> None:
        """Abort requests."""
        for name in names:
            self._call(self.engine.abort(name))

    def shutdown(self) -> None:
        """End all processes."""
        self.loop.call_soon_threadsafe(self.engine.shutdown)
        self.loop.call_soon_threadsafe(self.loop.stop)

    def _call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout=900)

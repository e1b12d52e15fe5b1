"""The logits processor that ``--logits-processors`` names, for whichever model runner loads it.

Opt in by class path: ``textguide.logits_processors.vllm_plugin.processor:GuidedLogitsProcessor``, with the scheduler
of ``scheduler.py``. Not registered as an entry point: those load for every model of an installation.
"""

from __future__ import annotations

from typing import Any

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.model_executor.models.registry import ModelRegistry
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.sample.logits_processor import LogitsProcessor as FirstInterface
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as SecondInterface

from .adapters import remember_adapters
from .adapters_on_cpu import mend
from .channel import outbox_of
from .further_models import TWIN, TWIN_CLASS
from .processor_v1 import FirstRunnerProcessor
from .processor_v2 import SecondRunnerProcessor
from .reports import carry
from .speculation import speculation_of
from .validation import remember_chats, validate
from .verification import read_guesses

remember_chats(ChatCompletionRequest)
remember_adapters(OpenAIServingModels)
carry(OutputProcessor)
mend()
ModelRegistry.register_model(TWIN, TWIN_CLASS)


class First(FirstRunnerProcessor, FirstInterface):
    """For vLLM's first model runner."""

    def __init__(self, *args: Any) -> None:
        # Imported here: front ends, which load this file too, run no model.
        from vllm.v1.worker.gpu_model_runner import GPUModelRunner

        super().__init__(*args)
        self.outbox = outbox_of(GPUModelRunner)
        if speculation_of(args[0]) is not None:
            read_guesses(GPUModelRunner)


class Second(SecondRunnerProcessor, SecondInterface):
    """For vLLM's second model runner."""

    def __init__(self, *args: Any) -> None:
        from vllm.v1.worker.gpu.model_runner import GPUModelRunner

        super().__init__(*args)
        self.outbox = outbox_of(GPUModelRunner)


class GuidedLogitsProcessor(FirstInterface, SecondInterface):
    """Makes the processor of the runner that calls: the first hands over a device, the second its buffers."""

    def __new__(cls, vllm_config: Any, *interface: Any) -> Any:
        """Arguments behind the configuration: ``device, is_pin_memory`` from the first runner, ``req_states`` from the
        second."""
        return (First if len(interface) == 2 else Second)(vllm_config, *interface)

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Refuse arguments of guidance that cannot work, as a ``ValueError``: HTTP 400."""
        validate(sampling_params)

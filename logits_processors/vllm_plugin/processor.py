"""The logits processor that ``--logits-processors`` names, for whichever model runner loads it.

Opt in by class path: ``textguide.logits_processors.vllm_plugin.processor:GuidedLogitsProcessor``, with the scheduler
of ``scheduler.py``. It is not registered as an entry point: those load for every model of an installation.

Importing this file wraps the methods of vLLM that front ends need (:mod:`~.wrapping`).
"""

from __future__ import annotations

from typing import Any

from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin
from vllm.entrypoints.llm import LLM
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.exceptions import VLLMValidationError
from vllm.model_executor.models.registry import ModelRegistry
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.sample.logits_processor import LogitsProcessor as FirstInterface
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as SecondInterface

from .adapters import remember_adapters
from .adapters_on_cpu import mend
from .channel import outbox_of
from .further_models import COMBINED_MODEL, COMBINED_MODEL_CLASS
from .processor_v1 import FirstRunnerProcessor, remember_logits
from .processor_v2 import SecondRunnerProcessor
from .reports import gather_reports, report_beams
from .speculation import speculation_of
from .validation import (
    UNKNOWN_MESSAGES,
    check_requests,
    refusing,
    remember_chats,
    remember_inputs,
    remember_offline_chats,
    validate,
)
from .verification import read_guesses

remember_inputs(InputProcessor)
remember_chats(ChatCompletionRequest, messages_of=lambda request: list(request.messages))
# The input of a response may have parts that are not messages, such as calls of tools.
remember_chats(ResponsesRequest, messages_of=lambda request: UNKNOWN_MESSAGES)
remember_offline_chats(LLM)


class RefusedError(VLLMValidationError):
    """An argument of guidance cannot work; vLLM answers with HTTP 400, and with its name."""

    def __str__(self) -> str:
        """The message, to which vLLM would add the argument again."""
        return str(self.args[0])


for protocol in (CompletionRequest, ChatCompletionRequest, ResponsesRequest):
    check_requests(protocol, RefusedError)
report_beams(BeamSearchOnlineMixin)
remember_adapters(OpenAIServingModels)
gather_reports(OutputProcessor)
mend()
ModelRegistry.register_model(COMBINED_MODEL, COMBINED_MODEL_CLASS)


class First(FirstRunnerProcessor, FirstInterface):
    """For vLLM's first model runner."""

    def __init__(self, *args: Any) -> None:
        # Imported here: front ends, which load this file too, run no model.
        from vllm.v1.sample.sampler import Sampler
        from vllm.v1.worker.gpu_model_runner import GPUModelRunner

        super().__init__(*args)
        self.outbox = outbox_of(GPUModelRunner)
        remember_logits(Sampler)
        if speculation_of(args[0]) is not None:
            read_guesses(GPUModelRunner)


class Second(SecondRunnerProcessor, SecondInterface):
    """For vLLM's second model runner."""

    def __init__(self, *args: Any) -> None:
        from vllm.v1.worker.gpu.model_runner import GPUModelRunner

        super().__init__(*args)
        self.outbox = outbox_of(GPUModelRunner)


class GuidedLogitsProcessor(FirstInterface, SecondInterface):
    """Makes the processor of the model runner that calls it."""

    def __new__(cls, vllm_config: Any, *interface: Any) -> Any:
        """Choose the class by the arguments after the configuration.

        The first runner passes ``device, is_pin_memory``, and the second one ``req_states``.
        """
        return (First if len(interface) == 2 else Second)(vllm_config, *interface)

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Refuse arguments of guidance that cannot work, which vLLM answers with HTTP 400."""
        with refusing(RefusedError, sampling_params):
            validate(sampling_params)

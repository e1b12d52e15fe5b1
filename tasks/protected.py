"""The lm-eval task that keeps its questions out of sample logs and caches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lm_eval.api.task import ConfigurableTask

WITHHELD = "[withheld: the data's authors ask that it is not stored in plain text]"

# What scoring needs of a document; none of it shows the question.
_SHOWN = ("id", "answer")

# An extracted answer is a letter with its brackets. What is much longer can match none, but may quote the
# question.
_LONGEST_ANSWER = 16


class ProtectedTask(ConfigurableTask):
    """A task whose questions only the model sees.

    Once the model has answered, prompts and documents are replaced by a placeholder, before lm-eval collects
    them for its sample log. Scores are those of the plain task.

    Raises:
        ValueError: a run asks lm-eval to cache requests, which would write the prompts to a file.
    """

    def __init__(
        self,
        data_dir: str | None = None,
        cache_dir: str | None = None,
        download_mode: Any = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        self._answered = False
        # `class` is how a YAML names this class; lm-eval's config knows no such field.
        plain = {key: value for key, value in (config or {}).items() if key != "class"}
        super().__init__(data_dir, cache_dir, download_mode, config=plain)

    def build_all_requests(self, **kwargs: Any) -> None:
        """Build the requests, as lm-eval does, but never through its cache of requests."""
        if kwargs.get("cache_requests"):
            raise ValueError(
                f"cache_requests=True would write the questions of {self.task_name} to a file, which its "
                "authors ask not to do; leave cache_requests unset"
            )
        self._answered = False
        super().build_all_requests(**kwargs)

    def apply_filters(self) -> Any:
        """Extract the answers, then forget the questions."""
        result = super().apply_filters()
        for instance in self._instances or []:
            instance.doc = _shown(instance.doc)
            instance.arguments = (WITHHELD, *instance.arguments[1:])
            if self.OUTPUT_TYPE == "generate_until":
                instance.resps = [WITHHELD for _ in instance.resps]
                instance.filtered_resps = {key: _short(value) for key, value in instance.filtered_resps.items()}
        self._answered = True
        return result

    def doc_iterator(self, **kwargs: Any) -> Iterator[tuple[int, Any]]:
        """The documents: whole for building the requests, bare ones for scoring and logging."""
        for doc_id, doc in super().doc_iterator(**kwargs):
            yield doc_id, _shown(doc) if self._answered else doc


def _shown(doc: dict[str, Any]) -> dict[str, Any]:
    return {key: doc[key] for key in _SHOWN}


def _short(answer: Any) -> Any:
    return answer if not isinstance(answer, str) or len(answer) <= _LONGEST_ANSWER else WITHHELD

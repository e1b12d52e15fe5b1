"""The official JSON Schema test suite; ``json_suite`` prints the whole table."""

from __future__ import annotations

import pytest

from textguide.constraints import JSONSchema

from . import json_suite
from .walks import BYTES

pytest.importorskip("llguidance")
pytest.importorskip("jsonschema")
pytest.importorskip("idna")

# The validator of ``jsonschema`` refuses this document too.
REFUSED_BY_THE_LIBRARY = [
    "draft2019-09/unevaluatedProperties: unevaluatedProperties with adjacent non-bool additionalProperties: "
    "with additional properties"
]


@pytest.mark.filterwarnings("ignore:schema uses formats")
@pytest.mark.parametrize("part", [json_suite.REQUIRED, json_suite.FORMATS])
@pytest.mark.parametrize("draft", json_suite.DRAFTS)
def test_every_document_is_judged_as_the_suite_says(draft: str, part: str) -> None:
    counts = json_suite.run(draft, part)
    assert counts.crashes == []
    assert counts.wrong_accepts == []
    assert set(counts.wrong_rejects) <= set(REFUSED_BY_THE_LIBRARY)
    assert counts.loaded == counts.schemas > 0
    assert all("chooses its own vocabularies" in reason for reason in counts.refused)
    assert counts.valid > 90
    assert counts.invalid > 100


def test_other_documents_are_never_fetched() -> None:
    schema = {"$ref": "http://localhost:1234/integer.json"}
    with pytest.raises(ValueError, match=r"leads nowhere .* schemas=\{uri: schema\}"):
        JSONSchema(schema)
    known = JSONSchema(schema, schemas={"http://localhost:1234/integer.json": {"type": "integer"}})
    session = known.start(BYTES)
    assert session.is_complete(b"12")
    assert not session.is_prefix(b'"')

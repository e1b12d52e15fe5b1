"""JSON documents of a pydantic class under guidance, several particles per mail."""

from pydantic import BaseModel, ConfigDict

import textguide
from textguide import AWRS, CFG
from textguide.constraints import JSONSchema


class Mail(BaseModel):
    """What is extracted from a mail."""

    model_config = ConfigDict(extra="forbid")  # otherwise a document may have further keys
    urgent: bool
    answers: int


model, tokenizer = textguide.load("smollm2-small", device="cpu")
mails = ["Mail one, as JSON: ", "Mail two, as JSON: ", "Mail three, as JSON: "]
guidance = [CFG(1.5), AWRS(JSONSchema(Mail), particles=2)]
out = textguide.generate(model, tokenizer, mails, guidance, max_new_tokens=64, seed=0)
assert len(out.texts) == 6
assert [len(texts) for texts in out.grouped] == [2, 2, 2]
assert [text for texts in out.grouped for text in texts] == out.texts
chosen = [out.texts[row] for row in out.weighted_sample(seed=0)]
for text, texts in zip(chosen, out.grouped):
    assert text in texts
    print(Mail.model_validate_json(text))

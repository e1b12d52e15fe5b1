"""Answers from a passage, in a form that ends with a citation."""

import re
import warnings

import textguide
from textguide import AWRS
from textguide.constraints import Regex
from textguide.guidance import ContextAware
from textguide.support.errors import NoParticleLeftWarning

model, tokenizer = textguide.load("smollm2-small", device="cpu")
document = "[1] The river in Perth rose by two metres on Monday."
pattern = r"The answer is [a-z]{3,9}( [a-z]{2,9}){0,2} \[[0-9]\]\."
form = Regex(pattern)
guidance = [ContextAware(1.5, context=document), AWRS(form, sampler="mask")]
prompt = f"{document}\nWhat rose? "
out = textguide.generate(model, tokenizer, prompt, guidance, max_new_tokens=40)
assert re.fullmatch(pattern, out.texts[0]), out.texts
assert out.finished.tolist() == [True]
print(out.texts[0], out.finish_reasons)

# A form that does not fit into max_new_tokens is reported, with the remedy.
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    cut = textguide.generate(model, tokenizer, prompt, guidance, max_new_tokens=4)
assert cut.finished.tolist() == [False]
assert cut.finish_reasons == ["length"]
(warning,) = caught
assert warning.category is NoParticleLeftWarning
assert "raise max_new_tokens" in str(warning.message)

"""A context of 4,096 tokens, guided by its last token and by another context of the same length."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import textguide
from textguide import CFG

torch.manual_seed(0)
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
model = LlamaForCausalLM(LlamaConfig(vocab_size=64, max_position_embeddings=4200, **sizes)).eval()
model.generation_config.eos_token_id = model.generation_config.pad_token_id = None
context = torch.randint(4, 64, (4096,)).tolist()
other = torch.randint(4, 64, (4096,)).tolist()
last = context[-1:]
for negative, prompt in ((last, None), (other, other)):
    out = textguide.generate(model, None, [context], CFG(1.5, negative_prompt=prompt), max_new_tokens=8)
    new = out.new_tokens[0]
    # The rule, with whole passes without a cache.
    with torch.no_grad():
        branches = [model(torch.tensor([rows + new])).logits[0, -9:-1] for rows in (context, negative)]
    cond, uncond = (logits.log_softmax(-1) for logits in branches)
    guided = (uncond + 1.5 * (cond - uncond)).log_softmax(-1)
    assert guided.argmax(-1).tolist() == new
    torch.testing.assert_close(guided[range(8), new], out.log_probs[0], atol=1e-4, rtol=1e-4)

# A context that does not fit is refused with its length and that of the model.
try:
    textguide.generate(model, None, [context + other], CFG(1.5))
except ValueError as error:
    assert "has 8192 tokens" in str(error)
    assert "4200 positions" in str(error)
else:
    raise AssertionError("a context that is longer than the model was accepted")

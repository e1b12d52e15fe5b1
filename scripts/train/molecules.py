"""Train the bundled conditional molecule model (one core, under 15 minutes with the properties)::

    pip install 'textguide[molecules]' && pip download --no-deps molsets==0.3.1
    python scripts/train/molecules.py --data molsets-0.3.1-py3-none-any.whl

The prompt is four tokens with the bins of QED, logP, heavy atoms and rings, computed by RDKit; the target is the SMILES
string, filled up to 32 tokens with end tokens.
"""

from __future__ import annotations

import argparse
import gzip
import random
import re
import zipfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from masked import EOS, MASK, small_encoder, tokenizer_of, train, write

from textguide.tasks import molecules

LENGTH = 32
MEMBER = "moses/dataset/data/train.csv.gz"
CARD = """# molecules: a conditional masked diffusion model of SMILES

A bidirectional encoder ({parameters:,} parameters, `ModernBertForMaskedLM`) trained from random weights by
`scripts/train/molecules.py --steps {steps}` for {minutes} minutes on {threads} CPU core(s), {batch} rows per step.

* Text: four tokens with the bins of QED, logP, heavy atoms and rings (`textguide.tasks.molecules.EDGES`), then 32
  tokens of a SMILES string, padded with end tokens.
* Data: {rows} molecules drawn at random from the training set of MOSES (the package molsets 0.3.1, MIT), properties by
  RDKit {rdkit}. Molecules longer than 32 tokens were left out.
* Objective: masked diffusion, the number of masked target tokens uniform. A tenth of the prompts was masked
  completely and a tenth partially, so that the model has learned the unconditional branch of guidance.
* It is small and was trained for minutes. Use it to study guidance, not for chemistry.
* Licence: Apache-2.0, as the rest of the project.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the molsets wheel, or its train.csv.gz")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--rows", type=int, default=60000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("textguide/diffusion/models/molecules"))
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    texts = sample(arguments.data, arguments.rows)
    with ProcessPoolExecutor(2) as pool:
        bins = list(pool.map(molecules.bins_of, texts, chunksize=2000))
    pairs = [(b, text) for b, text in zip(bins, texts, strict=True) if b is not None]
    pieces = sorted({piece for _, text in pairs for piece in re.findall(molecules.PATTERN, text)})
    tokenizer = tokenizer_of([*molecules.prompt_tokens(), *pieces], molecules.PATTERN)
    prompt = len(molecules.EDGES)
    rows = torch.full((len(pairs), prompt + LENGTH), EOS)
    for row, (b, text) in zip(rows, pairs, strict=True):
        ids = tokenizer(molecules.prompt_of(b) + text).input_ids
        row[: len(ids)] = torch.tensor(ids)
    print(f"{len(rows)} molecules, {len(tokenizer)} tokens", flush=True)
    model = small_encoder(len(tokenizer), arguments.width, arguments.layers, prompt + LENGTH)
    order = torch.Generator().manual_seed(1)

    def batches(step: int) -> torch.Tensor:
        return rows[torch.randint(len(rows), (arguments.batch,), generator=order)]

    def watch(model: torch.nn.Module) -> str:
        """One token a step in a random order, sampled."""
        chance = torch.Generator().manual_seed(0)
        ids = rows[:32].clone()
        ids[:, prompt:] = MASK
        with torch.no_grad():
            for place in torch.randperm(LENGTH, generator=chance) + prompt:
                distribution = model(input_ids=ids).logits[:, place].softmax(-1)
                ids[:, place] = torch.multinomial(distribution, 1, generator=chance)[:, 0]
        texts = tokenizer.batch_decode(ids[:, prompt:], skip_special_tokens=True)
        found = molecules.report([b for b, _ in pairs[:32]], texts)
        return f"valid {sum(found.valid) / 32:.2f} hits {sum(found.hits) / 32:.2f} e.g. {texts[0]}"

    facts = train(model, batches, prompt, steps=arguments.steps, watch=watch, rate=3e-3)
    import rdkit

    facts |= {"rows": len(rows), "batch": arguments.batch, "width": arguments.width, "layers": arguments.layers}
    facts |= {"rdkit": rdkit.__version__}
    print(facts, watch(model))
    write(model, tokenizer, arguments.output, facts, CARD.format(**facts))


def sample(path: Path, count: int) -> list[str]:
    """``count`` SMILES strings of at most ``LENGTH`` tokens from the training set, always the same ones."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            data = wheel.read(MEMBER)
    else:
        data = path.read_bytes()
    lines = gzip.decompress(data).decode().splitlines()[1:]
    texts = [line.split(",")[0].strip() for line in lines]
    random.Random(0).shuffle(texts)
    return [t for t in texts if len(re.findall(molecules.PATTERN, t)) <= LENGTH][:count]


if __name__ == "__main__":
    main()

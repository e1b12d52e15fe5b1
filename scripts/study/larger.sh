#!/usr/bin/env bash
# HumanEval and GSM8K under classifier-free guidance with a model of 1.5 billion parameters: four scales, two
# temperatures. A killed run goes on where it was; `--plan` prints passes, tokens and hours, and runs one batch of each.
#
#   bash scripts/study/larger.sh FOLDER [--plan]
#
# PROBLEMS, TEXTS, ITEMS and SHOTS set how many problems of HumanEval, programs for each, questions of GSM8K and worked
# examples before each; PARTS, of humaneval and gsm8k, what is run.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=$1
python=${PYTHON:-.venv/bin/python}
plan=${2:-}
model=$("$python" scripts/bench/larger_model.py)
run() {
  local name=$1
  shift
  "$python" -m textguide eval --model "$model" --dtype bfloat16 --scales 1,1.25,1.5,2 --select-on none \
    --output "$folder/$name" $plan "$@"
}
for temperature in 0.2 0.6; do
  [[ ${PARTS:-humaneval} == *humaneval* ]] || continue
  run "humaneval-$temperature" --tasks humaneval --limit "${PROBLEMS:-40}" --repeats "${TEXTS:-1}" --batch-size 64 \
    --gen-kwargs "do_sample=true,temperature=$temperature,max_gen_toks=160" --confirm-run-unsafe-code
done
for sampling in do_sample=false do_sample=true,temperature=0.6; do
  [[ ${PARTS:-gsm8k} == *gsm8k* ]] || continue
  run "gsm8k-$([[ $sampling == *=false ]] && echo 0 || echo "${sampling##*=}")" --tasks gsm8k_cot --batch-size 64 \
    --limit "${ITEMS:-40}" --num-fewshot "${SHOTS:-4}" --gen-kwargs "$sampling,max_gen_toks=128"
done

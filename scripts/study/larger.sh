#!/usr/bin/env bash
# HumanEval and GSM8K under classifier-free guidance with a model of 1.5 billion parameters: four scales, two
# temperatures. A killed run goes on where it was; `--plan` prints what would be run.
#
#   bash scripts/study/larger.sh FOLDER [--plan]
#
# PROBLEMS, TEXTS and ITEMS set how many problems of HumanEval, programs for each and questions of GSM8K.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=$1
python=${PYTHON:-.venv/bin/python}
model=$([ "${2:-}" = --plan ] && echo MODEL || "$python" scripts/bench/larger_model.py)
run() {
  local name=$1
  shift
  local command=("$python" -m textguide.cli eval --model "$model" --dtype bfloat16 --scales 1,1.25,1.5,2
    --select-on none --output "$folder/$name" "$@")
  if [ "$model" = MODEL ]; then echo "${command[*]}"; else "${command[@]}"; fi
}
for temperature in 0.2 0.6; do
  run "humaneval-$temperature" --tasks humaneval --limit "${PROBLEMS:-24}" --repeats "${TEXTS:-4}" --batch-size 32 \
    --gen-kwargs "do_sample=true,temperature=$temperature,max_gen_toks=160" --confirm-run-unsafe-code
done
run gsm8k-0 --tasks gsm8k_cot --limit "${ITEMS:-48}" --batch-size 24 --gen-kwargs max_gen_toks=160
run gsm8k-0.6 --tasks gsm8k_cot --limit "${ITEMS:-48}" --batch-size 24 \
  --gen-kwargs do_sample=true,temperature=0.6,max_gen_toks=160

#!/usr/bin/env bash
# Every table of speed in the docs, measured on this machine, by one command:
#   bash scripts/bench/gpu.sh                          # a machine with a CUDA device
#   bash scripts/bench/gpu.sh --device cpu --tiny      # does it run? two minutes, figures of no use
# Writes a JSON file a table into --out (default: gpu-results/) and prints the tables. Parts that lack something (vLLM,
# data files, an adapter) are left out and say why; the exit code is 1 where a part failed.
#   --device cuda|cpu     [cuda]             --model MODEL   a name, folder or hub name [smollm2]
#   --dtype DTYPE         [bfloat16; float32 on a CPU]       --data FOLDER   for sweep [$TEXTGUIDE_DATA]
#   --adapter FOLDER      a distilled adapter of the model, for the table of serving
#   --out FOLDER          --only PART,…      of decode, lengths, chunks, speculation, sweep, serving, cost-model, batch
#   --tiny                the smallest figures that run           --print         print the commands and stop
# $PYTHON runs the parts without vLLM, $VLLM_PYTHON those with it; default: .venv and .venv-vllm, else python.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

PARTS="decode lengths chunks speculation sweep serving cost-model batch"
device=cuda model="" dtype="" out=gpu-results only="" tiny=0 print=0 adapter="" data="${TEXTGUIDE_DATA:-}"
while [ $# -gt 0 ]; do
  case "$1" in
    --device | --model | --dtype | --out | --only | --adapter | --data)
      [ $# -gt 1 ] || { echo "gpu.sh: $1 needs a value" >&2; exit 2; }
      printf -v "${1#--}" '%s' "$2"
      shift 2
      ;;
    --tiny | --print)
      printf -v "${1#--}" 1
      shift
      ;;
    *) echo "gpu.sh: unknown option $1; see the head of scripts/bench/gpu.sh" >&2; exit 2 ;;
  esac
done
case "$device" in cuda | cpu) ;; *) echo "gpu.sh: --device $device must be cuda or cpu" >&2; exit 2 ;; esac
for part in ${only//,/ }; do
  [[ " $PARTS " == *" $part "* ]] || { echo "gpu.sh: --only $part is no part; use $PARTS" >&2; exit 2; }
done
if [ -z "$dtype" ]; then [ "$device" = cpu ] && dtype=float32 || dtype=bfloat16; fi
if [ -z "$model" ]; then [ "$tiny" = 1 ] && model=smollm2-small || model=smollm2; fi

pick() { for one in "$@"; do command -v "$one" > /dev/null 2>&1 && { echo "$one"; return; }; done; echo python; }
python="${PYTHON:-$(pick .venv/bin/python python3)}"
vllm="${VLLM_PYTHON:-$(pick .venv-vllm/bin/python "$python")}"
has() { "$1" -c "import importlib.util as i, sys; sys.exit(i.find_spec('$2') is None)" 2> /dev/null; }
failed=()

# part NAME COMMAND…: runs a part, if it is wanted.
part() {
  local name="$1"
  shift
  [[ -z "$only" || ",$only," == *",$name,"* ]] || return 0
  if [ "$print" = 1 ]; then printf '%q ' "$@" && echo && return; fi
  echo "== $name" >&2
  "$@" || failed+=("$name")
}
# without NAME REASON: says why a part is left out.
without() {
  [[ -z "$only" || ",$only," == *",$1,"* ]] || return 0
  echo "== $1 is left out: $2" >&2
}

[ "$print" = 1 ] || mkdir -p "$out"
if [ "$tiny" = 1 ]; then
  decode="--all --batches 1 --prompts 8 --new 2 --repeats 1"
  lengths="--batches 2 --prompts 40 --new 2 --repeats 1"
  chunks="--batches 1 --prompts 40 --new 2 --repeats 1"
  speculation="--new 4 --repeats 1 --prompts 1 --drafts prompt-lookup --kinds code"
  sweep="--rows 4 --batch-size 4 --repeats 1"
  serving="--concurrency 1 2 --tokens 2 --repeats 1 --rounds 1"
  cost="--clients 2 --plain 1 2 4 --places 12 --tokens 2 --rounds 1"
  batch="--rows 40 --rows-per-shard 2 --replicas 2 --tokens 40 --kill-at 0.1 --compared 1"
else
  decode="--all --same-lengths --batches 1 8 32 --prompts 16 512 --new 32 --repeats 5"
  [ "$device" = cuda ] && decode+=" --static"
  lengths="--batches 1 4 8 --prompts 1024 4096 8000 --new 32 --repeats 5"
  chunks="--batches 1 8 --prompts 8000 16000 32000 --positions 33000 --new 2 --repeats 3"
  speculation="--new 96 --repeats 3"
  sweep="--rows 256 --repeats 3"
  serving="--concurrency 1 8 32 --tokens 128 --rounds 2 --repeats 5 --settle 10"
  cost="--clients 8 32 --plain 4 8 32 64 --places 96 --tokens 64 --rounds 5"
  batch="--rows 10000 --replicas 1"
fi
# On a GPU vLLM may compile and capture its passes, as it does where it serves.
engine="--dtype $dtype"
[ "$device" = cpu ] || engine+=" --no-enforce-eager"
eager=(--dtype "$dtype")
[ "$device" = cpu ] || eager+=(--graphs)

# shellcheck disable=SC2086  # the settings are lists of words
{
  part decode "$python" scripts/bench/decode.py --model "$model" --device "$device" --dtype "$dtype" $decode --json "$out/decode.json"
  part lengths "$python" scripts/bench/decode.py --model "$model" --device "$device" --dtype "$dtype" $lengths --json "$out/lengths.json"
  part chunks "$python" scripts/bench/decode.py --chunked --model "$model" --device "$device" --dtype "$dtype" $chunks --json "$out/chunks.json"
  part speculation "$python" scripts/bench/speculation.py --model "$model" --device "$device" --dtype "$dtype" $speculation --json "$out/speculation.json"
  if [ -n "$data" ]; then
    part sweep "$python" scripts/bench/sweep.py --device "$device" --data "$data" $sweep --json "$out/sweep.json"
  else
    without sweep "it reads LAMBADA; give --data FOLDER, or set TEXTGUIDE_DATA"
  fi
  if [ "$print" = 1 ] || has "$vllm" vllm; then
    distilled=()
    [ -z "$adapter" ] || distilled=(--adapter "$adapter")
    part serving "$vllm" scripts/bench/serve.py speed --guesses --model "$model" $serving --server-args="$engine" ${distilled[@]+"${distilled[@]}"} --json "$out/serving.json"
    part cost-model "$vllm" scripts/bench/cost_model.py --model "$model" "${eager[@]}" --time wall $cost --json "$out/cost-model.json"
  else
    for name in serving cost-model; do without "$name" "vLLM is not installed for $vllm"; done
  fi
  if [ "$print" = 1 ] || has "$python" ray; then
    part batch "$python" scripts/bench/batch.py --model smollm2-small $batch --json "$out/batch.json"
  else
    without batch "Ray is not installed for $python; pip install 'textguide[batch]'"
  fi
}
if [ "${#failed[@]}" -gt 0 ]; then
  echo "gpu.sh: failed: ${failed[*]}" >&2
  exit 1
fi

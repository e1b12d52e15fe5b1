#!/usr/bin/env bash
# Installs what the tests need, then lint, types and tests. Arguments go to pytest.
source "$(dirname "$0")/lib.sh"
prepare smollm2,eval,classifiers,profanity,sentiment,constraints,molecules,captioning,dev
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
if [ -z "${TEXTGUIDE_DATA:-}" ] && [ -d ../shared/data ]; then
  TEXTGUIDE_DATA="$(cd ../shared/data && pwd)"
  export TEXTGUIDE_DATA
fi
bash scripts/lint.sh
"$PYTHON" -m pytest "$@"

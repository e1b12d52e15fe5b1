#!/usr/bin/env bash
# Format, lint and types, as CI sees them.
source "$(dirname "$0")/lib.sh"
"$PYTHON" -m ruff format --check .
"$PYTHON" -m ruff check .
"$PYTHON" -m mypy textguide logits_processors tasks eval

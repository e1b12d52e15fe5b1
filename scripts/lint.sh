#!/usr/bin/env bash
# Format, lint and types, as CI sees them.
source "$(dirname "$0")/lib.sh"
"$PYTHON" -m ruff format --check .
"$PYTHON" -m ruff check .
link_package build/package
# The settings in pyproject.toml name the package and this folder; messages name the files themselves.
"$PYTHON" -m mypy | sed -E "s,^build/package/textguide/(logits_processors|tasks|eval)/,\1/,; s,^build/package/,,"

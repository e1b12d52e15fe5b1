#!/usr/bin/env bash
# Builds the site into site/, offline, with warnings as errors. Arguments go to mkdocs build.
source "$(dirname "$0")/lib.sh"
"$PYTHON" -c 'import material, mkdocstrings_handlers.python' 2>/dev/null || prepare docs
link_package build/site-source
NO_MKDOCS_2_WARNING=1 PYTHONPATH=scripts/site "$PYTHON" -m mkdocs build --strict "$@" 2>&1 | { grep -v "^INFO" || true; }
echo "site/index.html; its search needs a server: python -m http.server -d site"

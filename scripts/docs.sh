#!/usr/bin/env bash
# Builds the site into site/, offline, with warnings as errors. Arguments go to mkdocs build.
source "$(dirname "$0")/lib.sh"
"$PYTHON" -c 'import material, mkdocstrings_handlers.python' 2>/dev/null || prepare docs
# The package as it is installed: three of its folders are next to it in the repository.
rm -rf build/site-source
mkdir -p build/site-source/textguide
for path in textguide/*; do ln -s "$PWD/$path" "build/site-source/$path"; done
for name in logits_processors tasks eval; do ln -s "$PWD/$name" "build/site-source/textguide/$name"; done
NO_MKDOCS_2_WARNING=1 PYTHONPATH=scripts/site "$PYTHON" -m mkdocs build --strict "$@" 2>&1 | { grep -v "^INFO" || true; }
echo "site/index.html; its search needs a server: python -m http.server -d site"

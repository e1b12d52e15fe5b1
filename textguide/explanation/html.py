"""An explanation as one self-contained HTML page."""

from __future__ import annotations

import html
import math
from string import Template
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .explaining import ExplainedStep, Explanation, TokenMove

_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>textguide: what guidance did</title>
<style>
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1c1c; background: #fff; margin: 2rem auto; max-width: 76rem;
  padding: 0 1rem; }
h1 { font-size: 1.3rem; margin: 0 0 .3rem; } h2 { font-size: 1rem; margin: 2rem 0 .4rem; }
code, .text, td.tok { font-family: ui-monospace, monospace; }
.meta { color: #555; } .text { white-space: pre-wrap; line-height: 2; font-size: 1rem; }
.prompt { color: #777; }
.text a { color: inherit; text-decoration: none; padding: .15em 0; border-radius: 2px; }
.text a:hover, .text a:focus { outline: 2px solid #333; }
.text a.changed { border-bottom: 3px solid #b35900; }
.legend { display: flex; gap: 1.5rem; flex-wrap: wrap; color: #555; font-size: .85rem; align-items: center; }
.bar { display: inline-block; width: 9rem; height: .8rem; vertical-align: middle; margin: 0 .4rem;
  background: linear-gradient(to right, #fff, $strong); border: 1px solid #ccc; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .82rem; }
th { text-align: left; font-weight: 600; padding: .3rem .5rem; border-bottom: 2px solid #999; white-space: nowrap; }
td { padding: .2rem .5rem; border-bottom: 1px solid #e4e4e4; vertical-align: top; white-space: nowrap; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
tr:target td { background: #fff7d6; }
.cell { border-radius: 3px; padding: 0 .25rem; } .cell small { color: #333; }
</style></head><body>
<h1>What guidance did</h1>
<p class="meta"><code>$guidance</code><br>$effect</p>
<div class="legend"><span>how far guidance moved the law, KL in nats: 0<span class="bar"></span>$largest</span>
<span><u style="text-decoration-color:#b35900;text-decoration-thickness:3px">underlined</u>: another token without
guidance</span><span>click a token for its step</span></div>
<p class="text"><span class="prompt">$prompt</span>$tokens</p>
<h2>Every step</h2>
<p class="meta">Raised and lowered: the tokens with the largest and smallest log P(prompt) − log P(other branch), each
with its probability in the two branches (with the prompt → in the other branch) and after guidance. Where a classifier
alone guides: those that it moved furthest, with their probability before → after.</p>
<div class="scroll"><table><thead><tr><th>#</th><th>written</th><th>without guidance</th><th>KL</th><th>raised</th>
<th>lowered</th></tr></thead><tbody>
$rows
</tbody></table></div></body></html>
""")

_STRONG = (214, 96, 77)
_RAISED = (69, 117, 180)
_LOWERED = (215, 48, 39)


def page(explanation: Explanation) -> str:
    """The page for ``explanation``; every text in it is escaped."""
    largest = max([step.kl for step in explanation.steps], default=0.0)
    return _PAGE.substitute(
        guidance=html.escape(str(explanation.guidance)),
        effect=html.escape(str(explanation.effect)),
        largest=f"{largest:.2f}",
        strong=_rgb(_STRONG, 1.0),
        prompt=html.escape(explanation.prompt),
        tokens="".join(_token(step, largest) for step in explanation.steps),
        rows="\n".join(_row(step) for step in explanation.steps),
    )


def _token(step: ExplainedStep, largest: float) -> str:
    share = step.kl / largest if largest > 0 else 0.0
    changed = ' class="changed"' if step.chosen.token != step.plain.token else ""
    title = html.escape(f"KL {step.kl:.3f}; without guidance: {step.plain.text!r}", quote=True)
    style = f"background:{_rgb(_STRONG, share)}"
    return f'<a href="#step-{step.index}"{changed} style="{style}" title="{title}">{html.escape(step.chosen.text)}</a>'


def _row(step: ExplainedStep) -> str:
    plain = _visible(step.plain.text) if step.plain.token != step.chosen.token else "same"
    return (
        f'<tr id="step-{step.index}"><td class="n">{step.index + 1}</td>'
        f'<td class="tok">{_visible(step.chosen.text)}</td>'
        f'<td class="tok">{plain}</td><td class="n">{step.kl:.3f}</td>'
        f"<td>{_moves(step, step.raised, _RAISED)}</td><td>{_moves(step, step.lowered, _LOWERED)}</td></tr>"
    )


def _moves(step: ExplainedStep, moves: tuple[TokenMove, ...], colour: tuple[int, int, int]) -> str:
    cells = []
    for move in moves:
        # A ratio of e^4 or more is drawn at full strength.
        style = f"background:{_rgb(colour, 0.75 * min(1.0, abs(move.ratio) / 4))}"
        shown = f"{_percent(move.cond)} → {_percent(move.uncond)}, guided {_percent(move.guided)}"
        detail = html.escape(shown if step.branched else f"{_percent(move.cond)} → {_percent(move.guided)}")
        cells.append(
            f'<div class="cell" style="{style}"><code>{_visible(move.text)}</code> <small>{detail}</small></div>'
        )
    return "".join(cells)


def _visible(text: str) -> str:
    """Escaped text in which white space can be seen."""
    shown = text.replace("\n", "↵").replace("\t", "⇥").replace(" ", "␣")
    return html.escape(shown) or "∅"


def _percent(probability: float) -> str:
    if probability <= 0 or not math.isfinite(probability):
        return "0"
    return f"{probability:.1%}" if probability >= 0.0005 else f"{probability:.0e}"


def _rgb(colour: tuple[int, int, int], share: float) -> str:
    mixed = (round(255 + (channel - 255) * share) for channel in colour)
    return "rgb({},{},{})".format(*mixed)

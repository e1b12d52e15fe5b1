"""An explanation as one self-contained HTML page."""

from __future__ import annotations

import html
from collections.abc import Sequence
from string import Template

from .token_texts import percent, readable, visible
from .values import ExplainedStep, ExplainedText, TokenMove

_STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1b1f24; --quiet: #59636e; --line: #d8dee4; --panel: #f6f8fa;
  --raised: #0b5fc0; --lowered: #b3261e; --plain: #8c959f; --heat: #f08a24; --mark: #fff3c4; --focus: #0b5fc0; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --ink: #e6e9ee; --quiet: #9aa4b0; --line: #343b44;
  --panel: #1c2128; --raised: #6fb1ff; --lowered: #ff8f85; --plain: #6f7a86; --heat: #d9731a; --mark: #4a3d12;
  --focus: #6fb1ff; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 0 auto;
  max-width: 72rem; padding: 1.5rem 1rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.35rem; margin: 0 0 .3rem; } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
code, .text, .token { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: .93em; }
.quiet { color: var(--quiet); font-size: .88rem; } p { margin: .3rem 0; }
.note { border-left: 4px solid var(--heat); background: var(--panel); padding: .6rem .9rem; margin: 1rem 0; }
.text { white-space: pre-wrap; line-height: 2; margin: 1rem 0; padding: .8rem 1rem; background: var(--panel);
  border: 1px solid var(--line); border-radius: 8px; }
.prompt { color: var(--quiet); }
.text a { color: inherit; text-decoration: none; padding: .15em 0; border-radius: 3px;
  background: color-mix(in srgb, var(--heat) calc(var(--kl) * 60%), transparent); }
.text a.changed { box-shadow: inset 0 -2px var(--ink); }
.text a:hover { outline: 1px solid var(--ink); }
a:focus-visible, input:focus-visible, .scroll:focus-visible { outline: 3px solid var(--focus); outline-offset: 1px; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.5rem; }
.ramp { display: inline-block; width: 6rem; height: .8rem; vertical-align: middle; border: 1px solid var(--line);
  background: linear-gradient(to right, transparent, color-mix(in srgb, var(--heat) 60%, transparent)); }
.under { box-shadow: inset 0 -2px var(--ink); }
.steps { margin-top: .8rem; }
.step { border: 1px solid var(--line); border-radius: 8px; padding: .6rem .9rem .7rem; margin: 0 0 .8rem;
  scroll-margin-top: 1rem; }
.step:target { background: var(--mark); }
#only-changed:checked ~ .steps .step:not(.changed, :target) { display: none; }
.step h3 { font-size: 1rem; font-weight: 400; margin: 0; display: flex; flex-wrap: wrap; gap: .1rem 1rem;
  align-items: baseline; }
.step h3 a { color: var(--quiet); min-width: 1.6rem; } .step h3 .token { font-weight: 600; }
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: .4rem 2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; }
th, td { text-align: left; font-weight: 400; padding: .18rem .8rem .18rem 0; vertical-align: top; }
td:last-child, th:last-child { padding-right: 0; }
thead th { color: var(--quiet); font-size: .85rem; border-bottom: 1px solid var(--line); vertical-align: bottom; }
tbody tr + tr > * { border-top: 1px solid var(--line); }
th.branch, td.branch { text-align: right; font-variant-numeric: tabular-nums; max-width: 9rem; min-width: 4.5rem; }
tbody th { width: 34%; min-width: 6.5rem; } td.move { min-width: 9.5rem; }
.raised tbody th, .raised thead th:first-child { color: var(--raised); }
.lowered tbody th, .lowered thead th:first-child { color: var(--lowered); }
.bars { display: block; height: 9px; margin: 0 0 3px; } .bars span { display: block; height: 4px; min-width: 1px; }
.bars .before { background: var(--plain); } .bars .after { background: var(--raised); margin-top: 1px; }
.lowered .bars .after { background: var(--lowered); }
.numbers { font-variant-numeric: tabular-nums; white-space: nowrap; }
@media (max-width: 30rem) { body { padding: 1rem .6rem 3rem; } .step { padding: .5rem .6rem; }
  th, td { padding-right: .5rem; } td.move { min-width: 7.5rem; } tbody th { min-width: 5rem; } }
@media print { #only-changed, #only-changed + label { display: none; } .step { break-inside: avoid; } }
"""

_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>textguide: what guidance did</title>
<style>$style</style></head><body><main>
<h1>What guidance did</h1>
<p><code>$guidance</code></p>
<p class="quiet">$effect</p>
$note
<p class="text"><span class="prompt">$prompt</span>$tokens</p>
<div class="legend quiet"><span>how far guidance moved the distribution, KL in nats: 0 <span class="ramp"></span>
$largest</span>
<span><span class="under">underlined</span>: guidance changed the most likely token</span>
<span>follow a token to its step</span></div>
<h2>Every step</h2>
<p class="quiet">Each token with its probability in plain decoding → under guidance, before temperature, top-p and
penalties$branched. Raised tokens have more under guidance, lowered tokens less.</p>
$filter
<div class="steps">
$steps
</div></main></body></html>
""")


def page(explanation: ExplainedText) -> str:
    """The page for ``explanation``; every text in it is escaped."""
    steps = explanation.steps
    largest = max([step.kl for step in steps], default=0.0)
    note = f'<p class="note" role="note">{html.escape(explanation.note)}</p>' if explanation.note else ""
    return _PAGE.substitute(
        style=_STYLE,
        guidance=html.escape("no guidance" if explanation.guidance is None else str(explanation.guidance)),
        effect=html.escape(explanation.summary),
        note=note,
        largest=f"{largest:.2f}",
        prompt=html.escape(readable(explanation.prompt)),
        tokens="".join(_token(step, largest) for step in steps),
        branched=", and in each extra branch" if explanation.branches else "",
        filter=_filter(steps),
        steps="\n".join(_step(step, explanation.branches) for step in steps),
    )


def _filter(steps: Sequence[ExplainedStep]) -> str:
    """A switch that hides steps, where there are some to hide and some to show."""
    changed = sum(step.changed for step in steps)
    if changed in (0, len(steps)):
        return ""
    return (
        '<input type="checkbox" id="only-changed"> <label for="only-changed">'
        f"only the {changed} of {len(steps)} steps at which the most likely token changed</label>"
    )


def _token(step: ExplainedStep, largest: float) -> str:
    """A token of the text, linked to its step."""
    share = step.kl / largest if largest > 0 else 0.0
    title = f"KL {step.kl:.3f}"
    # A line break has no width, and could neither be seen nor followed.
    text = readable(step.chosen.text).replace("\n", "↵\n") or "∅"
    if step.changed:
        title += f"; most likely in plain decoding: {visible(step.plain_top.text)}"
    return (
        f'<a id="token-{step.index}" href="#step-{step.index}"{_class("changed" if step.changed else "")} '
        f'style="--kl:{share:.3f}" title="{html.escape(title)}">{html.escape(text)}</a>'
    )


def _step(step: ExplainedStep, branches: Sequence[str]) -> str:
    facts = (
        [f"KL {step.kl:.3f}", f"{percent(step.moved)} of the probability moved"]
        if step.guided
        else ["no guidance at this step"]
    )
    if step.allowed is not None:
        facts.append(f"the constraint allows {percent(step.allowed)}")
    facts.append(f"written token {percent(step.chosen.plain)} → {percent(step.chosen.guided)}")
    plain = (
        f'<span class="quiet">plain decoding: <span class="token">{_shown(step.plain_top)}</span></span>'
        if step.changed
        else ""
    )
    names = branches if step.chosen.branches else ()
    sides = "".join(
        _side(moves, side, mark, names)
        for moves, side, mark in ((step.raised, "raised", "▲"), (step.lowered, "lowered", "▼"))
        if moves
    )
    return (
        f'<article id="step-{step.index}"{_class("step changed" if step.changed else "step")}><h3>'
        f'<a href="#token-{step.index}" title="back to the text">{step.index + 1}</a>'
        f'<span class="token">{_shown(step.chosen)}</span>{plain}<span class="quiet">{" · ".join(facts)}</span></h3>'
        f'<div class="sides">{sides}</div></article>'
    )


def _side(moves: Sequence[TokenMove], side: str, mark: str, branches: Sequence[str]) -> str:
    """The table of the tokens that were raised, or of those that were lowered."""
    heads = "".join(f'<th scope="col" class="branch">{html.escape(name)}</th>' for name in branches)
    rows = "".join(_row(move) for move in moves)
    # A region that scrolls must be reachable by keyboard.
    wide = f' tabindex="0" role="region" aria-label="{side} tokens"' if len(branches) > 1 else ""
    return (
        f'<div class="scroll"{wide}><table class="{side}"><thead><tr><th scope="col">{mark} {side}</th>'
        f'<th scope="col">plain → guided</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _row(move: TokenMove) -> str:
    guided = "forbidden" if move.forbidden else percent(move.guided)
    cells = "".join(f'<td class="branch">{percent(value)}</td>' for value in move.branches)
    return (
        f'<tr><th scope="row" class="token" title="token {move.token}">{_shown(move)}</th>'
        f'<td class="move"><span class="numbers">{percent(move.plain)} → {guided}</span>'
        f'<span class="bars" aria-hidden="true"><span class="before" style="width:{move.plain:.1%}"></span>'
        f'<span class="after" style="width:{move.guided:.1%}"></span></span></td>{cells}</tr>'
    )


def _shown(move: TokenMove) -> str:
    return html.escape(visible(move.text))


def _class(names: str) -> str:
    return f' class="{names}"' if names else ""

// A canvas that fills: what each step wrote, and what was masked again for the second pass, and why.
import { html, useMemo, useState } from "textguide/html";
import { Player, usePlayer } from "textguide/player";
import { number, visible } from "textguide/words";

/** The cells after every step. */
export function canvases(cells, steps) {
  let now = cells.map((cell) => ({ ...cell, filled: null, confidence: null }));
  return steps.map((step) => {
    const again = new Map(step.remasked);
    const fixed = new Set(step.corrected);
    now = now.map((cell) => ({ ...cell, fresh: false, fixed: false }));
    for (const [place, text, confidence] of step.filled) {
      now[place] = { ...now[place], text, confidence: confidence ?? now[place].confidence, filled: step.index, fresh: !fixed.has(place), fixed: fixed.has(place) };
    }
    return now.map((cell, place) => ({ ...cell, again: again.has(place), certainty: again.get(place) ?? null }));
  });
}

const NAMES = { true: "prompt", false: "answer" };

function why(cell, place) {
  const parts = [`position ${place + 1}`, cell.text === null ? "masked" : visible(cell.text)];
  if (cell.given) parts.push("given by the prompt");
  if (cell.filled !== null) parts.push(`filled at step ${cell.filled + 1}${cell.confidence === null ? "" : ` with probability ${number(cell.confidence)}`}`);
  if (cell.fixed) parts.push("emptied and drawn again by the corrector");
  if (cell.again) parts.push(`masked again for the second pass: the model's best guess here has probability ${number(cell.certainty, 3)}, among the lowest of what is filled`);
  return parts.join(" · ");
}

/** The given cells and the filled ones side by side; all cells together if masks and given cells alternate. */
export function parts(cells, columns) {
  const runs = [];
  cells.forEach((cell, i) => (i && cells[i - 1].given === cell.given ? runs.at(-1).push(cell) : runs.push([cell])));
  const filled = runs.filter((run) => !run[0].given).length;
  return filled > 1 || cells.length === columns * columns ? [cells] : runs;
}

export function Canvas({ data, live }) {
  const steps = useMemo(() => canvases(data.cells, data.steps), [data.cells, data.steps]);
  const player = usePlayer(steps.length, live);
  const [place, setPlace] = useState(0);
  const cells = steps.length ? steps[player.shown] : data.cells.map((cell) => ({ ...cell, filled: null }));
  const at = Math.min(place, cells.length - 1);
  const columns = data.columns;
  const groups = parts(cells, columns);
  function move(event) {
    const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns ?? 1, ArrowUp: -(columns ?? 1) }[event.key];
    if (!by || at + by < 0 || at + by >= cells.length) return;
    event.preventDefault();
    setPlace(at + by);
    event.currentTarget.querySelectorAll("button")[at + by].focus();
  }
  return html`<div class="canvas">
    ${data.summary ? html`<p class="quiet">${data.summary}</p>` : ""}
    ${data.checked && !live ? html`<p class=${`verdict ${data.problem === null ? "good" : "bad"}`} role="status">${data.problem === null ? "✓ a solution" : `✗ not a solution: ${data.problem}`}</p>` : ""}
    <${Player} player=${player} />
    <p class="legend quiet"><span class="key given">given</span><span class="key masked">· masked</span><span class="key fresh">filled in this step</span>
      <span class="key fixed">drawn again</span><span class="key again">masked again for the second pass (A-CFG)</span></p>
    <div class="cells" role="group" aria-label="the canvas" onKeyDown=${move}>${groups.map((group, g) => html`<div key=${g} class=${`group${columns ? " grid" : ""}`}
        style=${columns ? { "--columns": columns } : {}} aria-label=${groups.length > 1 ? NAMES[group[0].given] : undefined} role="group"><span class="name quiet">${groups.length > 1 ? NAMES[group[0].given] : ""}</span>${group.map((cell) => {
      const i = cells.indexOf(cell);
      const kinds = ["cell", cell.given ? "given" : cell.text === null ? "masked" : "filled", cell.fixed ? "fixed" : cell.fresh ? "fresh" : "", cell.again ? "again" : ""];
      return html`<button type="button" key=${i} class=${kinds.join(" ")} tabindex=${i === at ? 0 : -1} aria-label=${why(cell, i)} title=${why(cell, i)}
        aria-pressed=${i === at ? "true" : "false"} onClick=${() => setPlace(i)} onFocus=${() => setPlace(i)} onMouseEnter=${() => setPlace(i)}>${cell.text === null ? "·" : visible(cell.text)}</button>`;
    })}</div>`)}</div>
    <p class="why">${why(cells[at], at)}</p></div>`;
}

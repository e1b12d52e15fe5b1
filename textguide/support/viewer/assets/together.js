// Texts that are generated together: one line each, with its weight, how it ended, and the text that it was copied from.
import { html, useMemo } from "textguide/html";
import { Player, usePlayer } from "textguide/player";
import { number, percent, readable, shares, visible } from "textguide/words";

/** The rows after every step: their tokens so far, the row that each was copied from, and whether it continues. */
export function states(steps) {
  const found = [];
  let texts = [];
  for (const step of steps) {
    if (!texts.length) texts = step.tokens.map(() => []);
    if (step.ancestors) {
      const rewritten = new Map(step.rewritten);
      texts = step.ancestors.map((from, row) => (rewritten.has(row) ? [...texts[from].slice(0, -1), rewritten.get(row)] : [...texts[from]]));
    }
    texts = texts.map((text, row) => (step.tokens[row] === null ? text : [...text, step.tokens[row]]));
    found.push({ ...step, texts, shares: step.log_weights.length ? shares(step.log_weights) : null });
  }
  return found;
}

const ENDS = { stop: "finished by a stop text", constraint: "finished: the constraint allows no further token" };

/**
 * How far a text is.
 * @param reason why the text ended, if the run is complete and this is its last step
 */
function state(step, row, reason) {
  if (step.deaths[row]) return { mark: "†", text: `dropped: ${step.deaths[row]}`, kind: "dead" };
  if (!step.texts[row].length) return { mark: "·", text: "not started", kind: "quiet" };
  if (reason === "length") return { mark: "✂", text: "cut off at the token limit", kind: "cut" };
  return step.open[row] ? { mark: "…", text: "continues", kind: "open" } : { mark: "✓", text: ENDS[reason] ?? "finished", kind: "done" };
}

/** All steps at a glance: a circle per row and step, as large as the row's share of the weight; lines show copies. */
function Map_({ steps, at, reasons, onSelect }) {
  const rows = steps[0].tokens.length;
  const gap = 18;
  const x = (i) => 12 + i * gap;
  const y = (row) => 12 + row * gap;
  const lines = [];
  const dots = [];
  steps.forEach((step, i) => {
    for (let row = 0; row < rows; row += 1) {
      if (step.tokens[row] === null && !(step.deaths[row] && !steps[i - 1]?.deaths[row])) continue;
      const from = step.ancestors ? step.ancestors[row] : row;
      if (i) lines.push(html`<line key=${`${i} ${row}`} class=${from === row ? "stay" : "moved"} x1=${x(i - 1)} y1=${y(from)} x2=${x(i)} y2=${y(row)} />`);
      const size = step.shares ? 2 + 5 * Math.sqrt(step.shares[row]) : 4;
      const end = state(step, row, i === steps.length - 1 ? reasons?.[row] : undefined);
      dots.push(end.kind === "dead"
        ? html`<path key=${`${i} ${row}`} class="dead" d=${`M${x(i) - 4},${y(row) - 4}l8,8m0,-8l-8,8`} />`
        : html`<circle key=${`${i} ${row}`} class=${end.kind} cx=${x(i)} cy=${y(row)} r=${size.toFixed(1)} />`);
    }
  });
  const width = 24 + (steps.length - 1) * gap;
  const pick = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    onSelect(Math.max(0, Math.min(steps.length - 1, Math.round(((event.clientX - box.left) * (width / box.width) - 12) / gap))));
  };
  return html`<div class="scroll" tabindex="0" role="region" aria-label="all steps at a glance"><svg class="map" width=${width} height=${24 + (rows - 1) * gap}
    viewBox=${`0 0 ${width} ${24 + (rows - 1) * gap}`} role="img" onClick=${pick}
    aria-label=${`${rows} texts over ${steps.length} steps; resampled at ${steps.filter((s) => s.ancestors && !s.rewritten.length).length} of them`}>
    <rect class="at" x=${x(at) - gap / 2} y="0" width=${gap} height="100%" />${lines}${dots}</svg></div>`;
}

/** What the weights and the copies of a complete run mean. */
function Facts({ data }) {
  const size = data.texts.length;
  const { distinct_texts: distinct, ancestors } = data;
  const alive = data.log_weights.filter((weight) => weight !== null).length;
  const copies = alive > distinct;
  return html`${distinct === null || distinct === undefined ? "" : html`<p class=${copies ? "note" : "quiet"}>${alive} of ${size} texts have a weight above 0; ${copies
    ? `only ${distinct} of them ${distinct === 1 ? "is" : "are"} different, the others are copies` : "all of them are different"}. They descend from ${ancestors} of the ${size} texts that were started.</p>`}
    <p class="quiet">Effective sample size ${number(data.ess)} of ${size}: how even the weights are, not how different the texts are. Log evidence (log of the mean weight) ${number(data.log_evidence)} nats${data.constrained
    ? `, an estimate of the log-probability that a text satisfies the constraint and ends in time. The constraint checked ${data.constraint_calls ?? 0} texts` : ""}.</p>`;
}

export function Together({ data, live }) {
  const steps = useMemo(() => states(data.steps), [data.steps]);
  const player = usePlayer(steps.length, live);
  if (!steps.length) return "";
  const step = steps[player.shown];
  // A run that was stopped has no texts: only its steps are known.
  const last = !live && data.texts !== undefined && player.shown === steps.length - 1;
  const reasons = last ? data.finish_reasons : undefined;
  const weighed = step.shares !== null;
  return html`<div class="together">
    ${data.summary ? html`<p class="quiet">${data.summary}</p>` : ""}
    <${Player} player=${player} name="token" />
    <${Map_} steps=${steps} at=${player.shown} reasons=${live ? undefined : data.finish_reasons} onSelect=${player.to} />
    <ol class="rows">${step.texts.map((text, row) => {
      const end = state(step, row, reasons?.[row]);
      const from = step.ancestors?.[row];
      return html`<li key=${row} class=${`${end.kind}${last && data.drawn === row ? " drawn" : ""}`}>
        <div class="row-head"><span class="quiet">text ${row + 1}</span>
          ${weighed ? html`<span class="weight" title=${`log-weight ${number(step.log_weights[row])}`}><span class="bar" aria-hidden="true"><span style=${{ width: `${100 * step.shares[row]}%` }}></span></span>
            <span class="numbers">${percent(step.shares[row])}</span></span>` : ""}
          <span class=${`end ${end.kind}`}>${end.mark} ${end.text}</span>
          ${from !== undefined && from !== row ? html`<span class="moved">${step.rewritten.length ? "forked from" : "copied from"} text ${from + 1}</span>` : ""}
          ${last && data.drawn === row ? html`<span class="chosen">drawn according to its weight</span>` : ""}</div>
        <div class="text small">${text.map((token, i) => html`<span key=${i} class=${i === text.length - 1 && step.tokens[row] !== null ? "newest" : ""}>${readable(token) || visible(token)}</span>`)}</div></li>`;
    })}</ol>
    ${last && weighed ? html`<${Facts} data=${data} />` : ""}
  </div>`;
}

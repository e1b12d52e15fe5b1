// KL along the text, γ if the guidance has one, and probabilities under another γ.
import { html } from "textguide/html";
import { number } from "textguide/words";

const WIDTH = 600;

function path(values, top, height, stepped) {
  const x = (i) => ((i + 0.5) * WIDTH) / values.length;
  const y = (value) => height - 2 - (height - 6) * Math.max(0, Math.min(1, value / top));
  if (!stepped) return values.map((value, i) => `${i ? "L" : "M"}${x(i).toFixed(1)},${y(value).toFixed(1)}`).join("");
  const half = WIDTH / values.length / 2;
  return values.map((v, i) => `${i ? "L" : "M"}${(x(i) - half).toFixed(1)},${y(v).toFixed(1)}H${(x(i) + half).toFixed(1)}`).join("");
}

function Line({ name, unit, values, height, kind, selected, onSelect, stepped }) {
  const top = Math.max(1e-6, ...values);
  const at = selected ?? 0;
  const pick = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    onSelect(Math.max(0, Math.min(values.length - 1, Math.floor(((event.clientX - box.left) / box.width) * values.length))));
  };
  const line = path(values, top, height, stepped);
  const area = stepped ? "" : `${line}L${(values.length - 0.5) * WIDTH / values.length},${height}L${0.5 * WIDTH / values.length},${height}Z`;
  const place = ((at + 0.5) * 100) / values.length;
  return html`<figure class=${`curve ${kind}`}>
    <figcaption><span>${name}</span> <span class="numbers">${number(values[at], 2)}${unit}</span> <span class="quiet">at token ${at + 1}, at most ${number(top, 2)}</span></figcaption>
    <svg viewBox=${`0 0 ${WIDTH} ${height}`} preserveAspectRatio="none" role="img" style=${{ height: `${height}px` }}
      aria-label=${`${name} along the text: ${values.length} tokens, at most ${number(top, 2)}${unit}`} onMouseMove=${pick} onClick=${pick}>
      ${area ? html`<path class="area" d=${area} />` : ""}<path class="line" d=${line} vector-effect="non-scaling-stroke" />
      <line class="at" x1=${(place * WIDTH) / 100} x2=${(place * WIDTH) / 100} y1="0" y2=${height} vector-effect="non-scaling-stroke" />
    </svg></figure>`;
}

/** Probabilities of the tokens under another γ, which is all that is known of the text under it. */
export function Probabilities({ others, selected, onSelect }) {
  const { pairs, scale } = others;
  if (pairs.length < 2) return "";
  return html`<div class="curves">
    <${Line} name=${`probability at γ ${scale}`} unit="" kind="gamma" height=${56} values=${pairs.map(([, after]) => after)} selected=${selected} onSelect=${onSelect} />
    <${Line} name="probability in plain decoding" unit="" kind="kl" height=${56} values=${pairs.map(([before]) => before)} selected=${selected} onSelect=${onSelect} />
  </div>`;
}

export function Curve({ steps, selected, onSelect }) {
  if (steps.length < 2) return "";
  const scales = steps.map((step) => step.scale);
  const scaled = scales.every((scale) => scale !== null && scale !== undefined);
  return html`<div class="curves">
    <${Line} name="KL" unit=" nats" kind="kl" height=${72} values=${steps.map((step) => step.kl)} selected=${selected} onSelect=${onSelect} />
    ${scaled ? html`<${Line} name="γ" unit="" kind="gamma" height=${36} stepped values=${scales} selected=${selected} onSelect=${onSelect} />` : ""}
  </div>`;
}

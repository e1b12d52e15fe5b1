// A text, token by token: each can be reached with the arrow keys, and is coloured by what guidance did to it.
import { html, useRef } from "textguide/html";
import { number, percent, readable, visible } from "textguide/words";

/** How a token is coloured: a share in [0, 1] and a direction. */
export function colour(step, mode, largest, other) {
  if (mode === "kl") return { share: largest > 0 ? step.kl / largest : 0, side: "moved" };
  const [before, after] = other ?? [step.chosen.plain, step.chosen.guided];
  return { share: Math.min(1, Math.abs(after - before) * 1.25), side: after >= before ? "up" : "down" };
}

function said(step, mode, other) {
  const own = other ?? [step.chosen.plain, step.chosen.guided];
  const top = step.changed && !other ? `; likeliest in plain decoding: ${visible(step.plain_top.text)}` : "";
  const what = mode === "kl" ? `KL ${number(step.kl, 3)}` : `${percent(own[0])} → ${percent(own[1])}`;
  return `token ${step.index + 1}, ${visible(step.chosen.text)}, ${what}${top}`;
}

/**
 * @param steps what happened at each token
 * @param mode "kl" or "change", the change of the token's own probability
 * @param others for each token the probabilities before and after that are shown instead of those of its step
 * @param onSelect called with the number of a token that is hovered, focused or pressed
 */
export function Tokens({ prompt, steps, mode = "kl", others, selected, onSelect, label, busy }) {
  const box = useRef(null);
  const largest = Math.max(1e-9, ...steps.map((step) => step.kl));
  const current = Math.min(selected ?? 0, steps.length - 1);
  function move(event) {
    const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 1, ArrowUp: -1 }[event.key];
    const to = by ? current + by : event.key === "Home" ? 0 : event.key === "End" ? steps.length - 1 : null;
    if (to === null || to < 0 || to >= steps.length) return;
    event.preventDefault();
    onSelect(to);
    box.current.querySelectorAll("button")[to]?.focus();
  }
  return html`<div class="text" role="group" aria-label=${label} aria-busy=${busy ? "true" : "false"} ref=${box} onKeyDown=${move}>
    <span class="prompt">${readable(prompt)}</span>${steps.map((step, i) => {
      const other = others?.[i];
      const { share, side } = colour(step, mode, largest, other);
      const shown = readable(step.chosen.text) || "∅";
      const breaks = shown.split("\n").length - 1;
      return html`<button type="button" key=${i} class=${`token ${side}${step.changed && !other ? " changed" : ""}`}
          style=${{ "--share": share.toFixed(3) }} tabindex=${i === current ? 0 : -1}
          aria-pressed=${i === selected ? "true" : "false"} aria-label=${said(step, mode, other)} title=${said(step, mode, other)}
          onMouseEnter=${() => onSelect(i)} onFocus=${() => onSelect(i)} onClick=${() => onSelect(i)}
        >${shown.replaceAll("\n", "↵")}</button>${Array.from({ length: breaks }, () => html`<br />`)}`;
    })}${busy ? html`<span class="caret" aria-hidden="true"></span>` : ""}
  </div>`;
}

/**
 * What the colours mean.
 * @param plain no token is underlined
 */
export function Legend({ mode, largest, plain }) {
  return html`<p class="legend quiet">${mode === "kl"
    ? html`<span>how far guidance moved the distribution, KL in nats: 0 <span class="ramp moved"></span> ${number(largest)}</span>`
    : html`<span>the token's own probability: <span class="ramp down"></span> lowered · raised <span class="ramp up"></span></span>`}
    ${plain ? "" : html`<span><span class="under">underlined</span>: guidance changed which token is the most likely</span>`}</p>`;
}

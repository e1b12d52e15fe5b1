// A continuation and what guidance did to it: the text, its curves, one step at a time, and all of them.
import { html, useId, useState } from "textguide/html";
import { Curve, Probabilities } from "textguide/curve";
import { OtherScale, Step, Steps } from "textguide/step";
import { Legend, Tokens } from "textguide/tokens";

/**
 * @param data what textguide.explain writes as JSON, or as much of it as there is yet
 * @param onFork called with the number of a step and a token to continue from there
 * @param title heading of the text
 * @param start the token that is looked at first
 * @param beside another text, shown next to it
 * @param others for another γ: { scale, own (the γ of the run), pairs (of every token, its probability before and after) };
 *   everything then shows this γ, and what is not known of it is hidden
 */
export function Explained({ data, onFork, others, busy, open, label = "the text under guidance", title, beside, start = null, children }) {
  const [mode, setMode] = useState("kl");
  const [selected, setSelected] = useState(start);
  const name = useId();
  const steps = data.steps;
  const at = steps.length ? Math.min(selected ?? 0, steps.length - 1) : null;
  const shown = others ? "change" : mode;
  return html`<div class="explained">
    ${others ? html`<p class="quiet">the same text at γ ${others.scale}; it was generated with γ ${others.own}</p>` : data.summary ? html`<p class="quiet">${data.summary}</p>` : ""}
    ${data.note ? html`<p class="note" role="note">${data.note}</p>` : ""}
    <div class=${beside ? "beside" : ""}>${beside}<div>${title ? html`<h2>${title}</h2>` : ""}
      <${Tokens} prompt=${data.prompt} steps=${steps} mode=${shown} others=${others?.pairs} selected=${at} onSelect=${setSelected} label=${label} busy=${busy} /></div></div>
    ${steps.length ? html`<div class="under-text">
      <fieldset class="modes"><legend class="visually-hidden">colour tokens by</legend>
        ${[["kl", "KL of the step"], ["change", "the token's own probability"]].map(([key, text]) => html`<label key=${key} class="check">
          <input type="radio" name=${name} value=${key} checked=${shown === key} disabled=${Boolean(others)} onChange=${() => setMode(key)} /> ${text}</label>`)}
      </fieldset>
      <${Legend} mode=${shown} plain=${Boolean(others)} largest=${Math.max(0, ...steps.map((step) => step.kl))} /></div>
      ${children}
      ${others ? html`<div class="look"><${Probabilities} others=${others} selected=${at} onSelect=${setSelected} /><${OtherScale} step=${steps[at]} others=${others} /></div>`
        : html`<div class="look"><${Curve} steps=${steps} selected=${at} onSelect=${setSelected} />
      <${Step} step=${steps[at]} branches=${data.branches ?? []} onFork=${onFork && ((move) => onFork(at, move))} /></div>
      <${Steps} steps=${steps} onSelect=${setSelected} open=${open} />`}` : ""}
  </div>`;
}

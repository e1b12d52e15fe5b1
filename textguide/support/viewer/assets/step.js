// One step: the likeliest tokens in every branch and under guidance, and what was raised and lowered.
import { html, useState } from "textguide/html";
import { number, percent, visible } from "textguide/words";

function Cell({ name, value, kind }) {
  return html`<td data-name=${name} class=${kind}><span class="value">${value === null ? "–" : percent(value)}</span>
    <span class="bar" aria-hidden="true"><span style=${{ width: `${100 * (value ?? 0)}%` }}></span></span></td>`;
}

function Moves({ moves, kind, mark }) {
  if (!moves.length) return "";
  return html`<div class=${`moves ${kind}`}><h4>${mark} ${kind} by guidance</h4>
    <ul>${moves.map((move) => html`<li key=${move.token}><span class="token-name">${visible(move.text)}</span>
      <span class="numbers">${percent(move.plain)} → ${move.forbidden ? "forbidden" : percent(move.guided)}</span></li>`)}</ul></div>`;
}

/**
 * @param branches names of the extra branches
 * @param onFork called with a token to continue from; null: texts cannot be forked here
 */
export function Step({ step, branches, onFork }) {
  const [order, setOrder] = useState("guided");
  const names = step.guided && step.chosen.branches.length ? branches : [];
  const columns = [["plain", "plain"], ...names.map((name, i) => [`branch ${i}`, name]), ["guided", "guided"]];
  const value = (move, key) => (key in move ? move[key] : move.branches[Number(key.slice(7))] ?? null);
  const known = step.likeliest?.length ? step.likeliest : [step.chosen, ...step.raised, ...step.lowered];
  const all = known.some((move) => move.token === step.chosen.token) ? known : [...known, step.chosen];
  const unique = [...new Map(all.map((move) => [move.token, move])).values()];
  const rows = unique.sort((a, b) => value(b, order) - value(a, order)).slice(0, 12);
  const facts = [];
  if (step.guided) facts.push(`KL ${number(step.kl, 3)} nats`, `${percent(step.moved)} of the probability moved`);
  else facts.push("no guidance at this step");
  if (step.scale !== null && step.scale !== undefined) facts.push(`γ ${number(step.scale)}`);
  if (step.allowed !== null) facts.push(`the constraint allows ${percent(step.allowed)}`);
  return html`<section class="step" aria-label=${`token ${step.index + 1}`}>
    <h3><span class="quiet">${step.index + 1}</span> <span class="token-name">${visible(step.chosen.text)}</span>
      <span class="quiet numbers">${percent(step.chosen.plain)} → ${percent(step.chosen.guided)}</span></h3>
    <p class="quiet">${facts.join(" · ")}${step.changed ? html` · plain decoding: <span class="token-name">${visible(step.plain_top.text)}</span>` : ""}</p>
    <table class="likeliest"><caption class="quiet">the most likely tokens before and after guidance</caption>
      <thead><tr><th scope="col">token</th>${columns.map(([key, name]) => html`<th key=${key} scope="col"
        aria-sort=${key === order ? "descending" : "none"}><button type="button" class="sort" title=${`sort by: ${name}`}
        onClick=${() => setOrder(key)}>${name}${key === order ? " ▾" : ""}</button></th>`)}</tr></thead>
      <tbody>${rows.map((move) => html`<tr key=${move.token} class=${move.token === step.chosen.token ? "written" : ""}>
        <th scope="row">${onFork && !move.forbidden
          ? html`<button type="button" class="fork" title="continue from this token" onClick=${() => onFork(move)}>${visible(move.text, 24)}
              <span class="visually-hidden">: continue from this token</span></button>`
          : html`<span class="token-name">${visible(move.text, 24)}</span>`}${move.token === step.chosen.token ? html` <span class="quiet">written</span>` : ""}</th>
        ${columns.map(([key, name]) => (key === "guided" && move.forbidden
          ? html`<td data-name=${name} key=${key}><span class="value">forbidden</span></td>`
          : html`<${Cell} key=${key} name=${name} kind=${key === "guided" ? "after" : "before"} value=${value(move, key)} />`))}
      </tr>`)}</tbody></table>
    <div class="sides"><${Moves} moves=${step.raised} kind="raised" mark="▲" /><${Moves} moves=${step.lowered} kind="lowered" mark="▼" /></div>
  </section>`;
}

/** One token under another γ than the one that the text was generated with. */
export function OtherScale({ step, others }) {
  const [before, after] = others.pairs[step.index];
  return html`<section class="step" aria-label=${`token ${step.index + 1}`}>
    <h3><span class="quiet">${step.index + 1}</span> <span class="token-name">${visible(step.chosen.text)}</span>
      <span class="quiet numbers">${percent(before)} → ${percent(after)}</span></h3>
    <p class="quiet">plain → γ ${others.scale}. At γ ${others.own}, with which the text was generated: ${percent(step.chosen.guided)}.</p>
    <p class="quiet">The table of the likeliest tokens, KL and all steps are known for γ ${others.own} only; they are shown when the slider is back at γ ${others.own}.</p></section>`;
}

/** Every step in a line or two, to be read from the first to the last. */
export function Steps({ steps, onSelect, open }) {
  const [some, setSome] = useState(false);
  const changed = steps.filter((step) => step.changed).length;
  const shown = some ? steps.filter((step) => step.changed) : steps;
  const few = (moves) => moves.slice(0, 3).map((m) => `${visible(m.text, 16)} ${percent(m.plain)} → ${m.forbidden ? "forbidden" : percent(m.guided)}`).join(", ");
  return html`<details class="steps" open=${open}><summary>Every step</summary>
    ${changed && changed < steps.length ? html`<label class="check"><input type="checkbox" checked=${some}
      onChange=${(event) => setSome(event.target.checked)} /> only the ${changed} of ${steps.length} steps at which the most likely token changed</label>` : ""}
    <ol>${shown.map((step) => html`<li key=${step.index} value=${step.index + 1}>
      <button type="button" class="fork" onClick=${() => onSelect(step.index)}>${visible(step.chosen.text)}</button>
      <span class="quiet"> ${step.guided ? `KL ${number(step.kl, 3)}` : "no guidance"}${step.changed ? ` · plain: ${visible(step.plain_top.text)}` : ""}</span>
      ${step.raised.length ? html`<div class="raised">▲ ${few(step.raised)}</div>` : ""}
      ${step.lowered.length ? html`<div class="lowered">▼ ${few(step.lowered)}</div>` : ""}</li>`)}</ol></details>`;
}

// Diffuse: a canvas of masks that fills.
import { html, useId, useState } from "textguide/html";
import { Canvas } from "textguide/canvas";
import { TakeAway } from "textguide/away";
import { Examples, Go, Options, startByKey, useKept, useRun } from "textguide/controls";
import { Guidance } from "textguide/field";

export function CanvasTab({ info, first }) {
  const start = first ?? info.examples.diffuse[0];
  const [model, setModel] = useState(start.model);
  const [prompt, setPrompt] = useState(start.prompt);
  const [guidance, setGuidance] = useState(start.guidance);
  const [options, setOptions] = useState(start.options);
  const [data, setData] = useState(null);
  const id = useId();
  const task = useRun();
  const about = info.canvases.find((one) => one.name === model);
  const request = { model, prompt, guidance: guidance.length ? guidance : null, options };
  async function write(event) {
    event.preventDefault();
    setData(null);
    const current = await task.start([["diffuse", request, (kind, values) => {
      if (kind === "canvas") setData({ ...values, steps: [], busy: true });
      else if (kind === "filled") setData((old) => ({ ...old, steps: [...old.steps, values] }));
      else if (kind === "end") setData(values);
    }]]);
    if (current) setData((old) => old && { ...old, busy: false });
  }
  const settings = { model, prompt, guidance, options };
  useKept("diffuse", settings);
  const load = (one) => { setModel(one.model); setPrompt(one.prompt); setGuidance(one.guidance); setOptions(one.options); };
  const choose = (name) => {
    const chosen = info.canvases.find((one) => one.name === name);
    setModel(name);
    setPrompt(chosen.prompt);
    setOptions(chosen.max_new_tokens ? { max_new_tokens: chosen.max_new_tokens } : {});
  };
  return html`<div class="columns"><form class="settings" aria-label="settings" onSubmit=${write} onKeyDown=${startByKey}>
      <${Examples} examples=${info.examples.diffuse} onChoose=${load} />
      <fieldset class="group"><legend>Canvas</legend>
        <div class="field"><label class="name" for=${`${id}-m`}>model</label><select id=${`${id}-m`} value=${model} onChange=${(event) => choose(event.target.value)}>
          ${info.canvases.map((one) => html`<option key=${one.name} value=${one.name}>${one.title}</option>`)}</select></div>
        <div class="field"><label class="name" for=${`${id}-p`}>prompt</label><input id=${`${id}-p`} type="text" class="code" value=${prompt} aria-describedby=${`${id}-h`} onInput=${(event) => setPrompt(event.target.value)} />
          <small class="help" id=${`${id}-h`}>${about?.hint}</small></div></fieldset>
      <${Guidance} info=${info} place="diffusion" value=${guidance} onChange=${setGuidance} error=${task.error} />
      <${Options} value=${options} onChange=${setOptions} fields=${info.canvas_options} />
      <${Go} task=${task} label="Fill" /></form>
    <section aria-label="the canvas">${data ? html`<${Canvas} data=${data} live=${data.busy} />${data.text !== undefined ? html`<h2>Text</h2><p class="text small">${data.text}</p>` : ""}`
      : html`<p class="empty">Press Fill: the model fills the empty positions step by step. Positions that A-CFG masks again are marked.</p>`}
      <${TakeAway} tab="diffuse" task="diffuse" request=${request} settings=${settings} data=${data?.kind && data.text !== undefined ? data : null} /></section></div>`;
}

// Constrain: texts that are written together, with their weights.
import { html, useState } from "textguide/html";
import { Together } from "textguide/together";
import { TakeAway } from "textguide/away";
import { Examples, Go, Missing, Options, Prompt, sent, startByKey, useKept, useRun } from "textguide/controls";
import { Guidance } from "textguide/field";

export function ConstrainTab({ info, first }) {
  // Without the engine of constraints, the first example that works is one without a constraint.
  const start = info.examples.together.find((one) => !info.missing.constrain || one.guidance.every((part) => !part.constraint));
  const [prompt, setPrompt] = useState(first?.prompt ?? start.prompt);
  const [guidance, setGuidance] = useState(first?.guidance ?? start.guidance);
  const [options, setOptions] = useState(first?.options ?? start.options);
  const [data, setData] = useState(null);
  const task = useRun();
  const request = { prompt: sent(prompt), guidance, options };
  async function write(event) {
    event.preventDefault();
    setData({ steps: [], busy: true });
    const current = await task.start([["together", request, (kind, values) => {
      if (kind === "rows") setData((old) => ({ ...old, steps: [...old.steps, values] }));
      else if (kind === "end") setData(values);
    }]]);
    if (current) setData((old) => (old?.steps.length ? { ...old, busy: false } : null));
  }
  const settings = { prompt, guidance, options };
  useKept("constrain", settings);
  const load = (one) => { setPrompt(one.prompt); setGuidance(one.guidance); setOptions(one.options); };
  return html`<div class="columns"><form class="settings" aria-label="settings" onSubmit=${write} onKeyDown=${startByKey}>
      <${Missing} message=${info.missing.constrain} />
      <${Examples} examples=${info.examples.together} onChoose=${load} />
      <${Prompt} value=${prompt} onChange=${setPrompt} info=${info} />
      <${Guidance} info=${info} place="generate" value=${guidance} onChange=${setGuidance} error=${task.error} />
      <${Options} value=${options} onChange=${setOptions} fields=${info.text_options} />
      <${Go} task=${task} /></form>
    <section aria-label="what was written">${data ? html`<${Together} data=${data} live=${data.busy} />`
      : html`<p class="empty">Press Write: several texts are generated at the same time. Each has a weight; from time to time, texts with a small weight are dropped and texts with a large weight are copied.</p>`}
      <${TakeAway} tab="constrain" task="together" request=${request} settings=${settings} data=${data?.kind ? data : null} /></section></div>`;
}

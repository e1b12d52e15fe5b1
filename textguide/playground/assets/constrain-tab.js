// Constrain: texts that are written together, with their weights.
import { html, useState } from "textguide/html";
import { Together } from "textguide/together";
import { TakeAway } from "textguide/away";
import { Examples, Go, Options, Prompt, sent, useRun } from "textguide/controls";
import { Guidance } from "textguide/field";

export function ConstrainTab({ info, first }) {
  const start = info.examples.together[0];
  const [prompt, setPrompt] = useState(first?.prompt ?? start.prompt);
  const [guidance, setGuidance] = useState(first?.guidance ?? start.guidance);
  const [options, setOptions] = useState(first?.options ?? start.options);
  const [data, setData] = useState(null);
  const task = useRun();
  const request = { prompt: sent(prompt), guidance, options };
  async function write(event) {
    event.preventDefault();
    setData({ steps: [], busy: true });
    await task.start([["together", request, (kind, values) => {
      if (kind === "rows") setData((old) => ({ ...old, steps: [...old.steps, values] }));
      else if (kind === "end") setData(values);
    }]]);
    setData((old) => (old?.steps.length ? { ...old, busy: false } : null));
  }
  const load = (one) => { setPrompt(one.prompt); setGuidance(one.guidance); setOptions(one.options); };
  return html`<div class="columns"><form class="settings" aria-label="settings" onSubmit=${write}>
      <${Examples} examples=${info.examples.together} onChoose=${load} />
      <${Prompt} value=${prompt} onChange=${setPrompt} info=${info} />
      <${Guidance} info=${info} place="generate" value=${guidance} onChange=${setGuidance} error=${task.error} />
      <${Options} value=${options} onChange=${setOptions} fields=${info.text_options} />
      <${Go} task=${task} /></form>
    <section aria-label="what was written">${data ? html`<${Together} data=${data} live=${data.busy} />`
      : html`<p class="empty">Press Write: texts are drawn together, each a line with its weight; those with little weight are replaced by those with much.</p>`}
      <${TakeAway} tab="constrain" task="together" request=${request} settings=${{ prompt, guidance, options }} data=${data?.kind ? data : null} /></section></div>`;
}

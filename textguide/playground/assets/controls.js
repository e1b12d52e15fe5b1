// Parts that the tabs share: prompt, sampling, buttons, messages, examples.
import { html, useEffect, useId, useRef, useState } from "textguide/html";
import { run } from "textguide/api";
import { keep } from "textguide/link";

export function Number_({ name, help, value, onChange, min, max, step = 1 }) {
  const id = useId();
  return html`<div class="field"><label class="name" for=${id}>${name}</label>
    <input id=${id} type="number" min=${min} max=${max} step=${step} value=${value ?? ""} aria-describedby=${help ? `${id}-help` : undefined}
      onInput=${(event) => onChange(event.target.value === "" ? undefined : Number(event.target.value))} />
    ${help ? html`<small class="help" id=${`${id}-help`}>${help}</small>` : ""}</div>`;
}

/** Inputs for options of a run, as the server describes them: the first two are shown, the rest is folded. */
export function Options({ value, onChange, fields, open }) {
  const put = (name, now) => {
    const next = { ...value, [name]: now };
    if (now === undefined) delete next[name];
    onChange(next);
  };
  const input = (field) => html`<${Number_} key=${field.name} name=${field.name} help=${field.label} step=${field.step}
    min=${field.minimum ?? undefined} max=${field.maximum ?? undefined} value=${value[field.name]} onChange=${(now) => put(field.name, now)} />`;
  return html`<fieldset class="group"><legend>Sampling</legend><div class="pair">${fields.slice(0, 2).map(input)}</div>
    <details open=${open}><summary>More</summary><div class="pair">${fields.slice(2).map(input)}</div></details></fieldset>`;
}

export function Prompt({ value, onChange, info }) {
  const id = useId();
  const chat = Array.isArray(value);
  const turns = chat ? value : [];
  const put = (i, turn) => onChange(turns.map((old, j) => (j === i ? turn : old)));
  const toChat = () => onChange([{ role: "system", content: "" }, { role: "user", content: chat ? "" : value }]);
  const toText = () => onChange(turns.filter((turn) => turn.role === "user").map((turn) => turn.content).join("\n"));
  return html`<fieldset class="group"><legend>Prompt</legend>
    ${info.chat ? html`<div class="modes"><label class="check"><input type="radio" name=${id} checked=${!chat} onChange=${toText} /> text to continue</label>
      <label class="check"><input type="radio" name=${id} checked=${chat} onChange=${toChat} /> chat</label></div>` : ""}
    ${chat ? turns.map((turn, i) => html`<div class="field" key=${i}><div class="inline"><label class="name" for=${`${id}-${i}`}>${turn.role}</label>
        ${i > 1 ? html`<button type="button" class="button" aria-label=${`remove message ${i + 1}`} onClick=${() => onChange(turns.filter((_, j) => j !== i))}>✕</button>` : ""}</div>
        <textarea id=${`${id}-${i}`} rows=${turn.role === "system" ? 2 : 3} value=${turn.content} onInput=${(event) => put(i, { ...turn, content: event.target.value })}></textarea></div>`)
      : html`<label class="visually-hidden" for=${`${id}-text`}>text to continue</label>
        <textarea id=${`${id}-text`} rows="4" value=${value} onInput=${(event) => onChange(event.target.value)}></textarea>`}
    ${chat ? html`<button type="button" class="button" onClick=${() => onChange([...turns, { role: turns.at(-1)?.role === "user" ? "assistant" : "user", content: "" }])}>Add a message</button>` : ""}
  </fieldset>`;
}

/** A chat without its empty system prompt. */
export function sent(prompt) {
  return Array.isArray(prompt) ? prompt.filter((turn) => turn.role !== "system" || turn.content.trim() !== "") : prompt;
}

export function Examples({ examples, onChoose }) {
  const id = useId();
  return html`<div class="field"><label class="name" for=${id}>Start from an example</label>
    <select id=${id} value="" onChange=${(event) => { if (event.target.value !== "") onChoose(examples[Number(event.target.value)]); event.target.value = ""; }}>
      <option value="">choose…</option>${examples.map((one, i) => html`<option key=${i} value=${i}>${one.title}</option>`)}</select></div>`;
}

/** Keeps the settings of a tab for a reload of the page. */
export function useKept(tab, settings) {
  const text = JSON.stringify(settings);
  useEffect(() => keep(tab, settings), [tab, text]);
}

/** Starts the run of a form with Ctrl+Enter (⌘+Enter on a Mac) from any of its fields. */
export function startByKey(event) {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  if (!event.currentTarget.querySelector("button.primary").disabled) event.currentTarget.requestSubmit();
}

/** What has to be installed before a tab works. */
export function Missing({ message }) {
  return message ? html`<p class="note" role="note">${message[0].toUpperCase()}${message.slice(1)}</p>` : "";
}

/** Runs of one tab: at most one at a time, which can be stopped. */
export function useRun() {
  const [state, setState] = useState({ busy: false, error: "", status: "" });
  const controller = useRef(null);
  const stop = () => controller.current?.abort();
  /** Runs until the end of all jobs, or until they are stopped or fail; false if another run has taken their place. */
  async function start(jobs) {
    stop();
    const own = new AbortController();
    controller.current = own;
    setState({ busy: true, error: "", status: "writing…" });
    const began = performance.now();
    let first = null;
    try {
      await Promise.all(jobs.map(([name, request, heard]) => run(name, request, (kind, data) => {
        if (own.signal.aborted) return;
        if (first === null && kind !== "status") first = performance.now() - began;
        if (kind === "status") setState((old) => ({ ...old, status: data }));
        else heard(kind, data);
      }, own.signal)));
      if (controller.current !== own) return false;
      const seconds = (time) => (time / 1000).toFixed(2);
      setState({ busy: false, error: "", status: `done in ${seconds(performance.now() - began)} s${first === null ? "" : `, the first step in ${seconds(first)} s`}` });
    } catch (error) {
      if (controller.current !== own) return false;
      const stopped = error.name === "AbortError";
      if (!stopped) own.abort();
      setState({ busy: false, error: stopped ? "" : error.message, status: stopped ? "stopped" : "" });
    }
    return true;
  }
  return { ...state, start, stop };
}

export function Go({ task, label = "Write" }) {
  return html`<div class="go"><div class="actions"><button type="submit" class="primary" disabled=${task.busy}>${label}</button>
    <button type="button" class="button" disabled=${!task.busy} onClick=${task.stop}>Stop</button><kbd class="quiet">Ctrl+Enter</kbd></div>
    <p class="error" role="alert">${task.error}</p><p class="status quiet" role="status" aria-live="polite">${task.status}</p></div>`;
}

// Write, see, fork: a text with and without guidance, what guidance did, and texts that go on from other tokens.
import { html, useEffect, useRef, useState } from "textguide/html";
import { Explained } from "textguide/explained";
import { number, readable, sum, visible } from "textguide/words";
import { ask } from "textguide/api";
import { TakeAway } from "textguide/away";
import { Examples, Go, Options, Prompt, sent, startByKey, useKept, useRun } from "textguide/controls";
import { Guidance } from "textguide/field";

const EMPTY = { prompt: "", steps: [], branches: [], summary: "", note: "" };

/** Values of γ that a text is scored under: a grid, and the one that it was written with. */
function grid(scale, most) {
  const end = Math.max(5, Math.ceil(scale) + 1);
  const values = Array.from({ length: 41 }, (_, i) => Number(((i * end) / 40).toFixed(3)));
  return [...new Set([...values, scale])].sort((a, b) => a - b).slice(0, most);
}

function scaleOf(guidance) {
  return (guidance?.parts ?? [guidance]).find((part) => typeof part?.scale === "number")?.scale;
}

/** The same text under other γ: one reading of every branch, and then a slider. */
function Scales({ node, info, onScores }) {
  const [state, setState] = useState({ scores: null, at: 0, error: "", moved: false });
  const { data, request } = node;
  useEffect(() => {
    setState({ scores: null, at: 0, error: "", moved: false });
    onScores(null);
    const scale = scaleOf(data.guidance);
    if (data.scorable !== null || scale === undefined || !data.steps.length) return undefined;
    let gone = false;
    const scales = grid(scale, info.limits.scales);
    ask("score", { prompt: request.prompt, guidance: request.guidance, tokens: data.steps.map((step) => step.chosen.token), scales, horizon: request.options.max_new_tokens })
      .then((scores) => { if (!gone) setState({ scores, at: scales.indexOf(scale), error: "", moved: false }); })
      .catch((error) => { if (!gone) setState({ scores: null, at: 0, error: error.message, moved: false }); });
    return () => { gone = true; };
  }, [data]);
  if (data.scorable !== null) return html`<p class="quiet">No slider for γ: ${data.scorable}.</p>`;
  if (state.error) return html`<p class="error" role="alert">${state.error}</p>`;
  if (!state.scores) return "";
  const { scales, log_probs: rows, plain } = state.scores;
  const show = (at, moved = true) => {
    setState({ ...state, at, moved: moved && scales[at] !== scaleOf(data.guidance) });
    const own = scaleOf(data.guidance);
    const pairs = plain.map((before, i) => [Math.exp(before ?? -Infinity), Math.exp(rows[at][i] ?? -Infinity)]);
    onScores(moved && scales[at] !== own ? { scale: scales[at], own, pairs } : null);
  };
  const total = sum(rows[state.at]);
  const best = rows.map(sum).reduce((top, value, i, all) => (value !== null && (all[top] === null || value > all[top]) ? i : top), 0);
  return html`<div class="scale"><label for="gamma">This text under other γ: <output>${scales[state.at]}</output></label>
    <input id="gamma" type="range" min="0" max=${scales.length - 1} value=${state.at} aria-valuetext=${`γ ${scales[state.at]}`} onInput=${(event) => show(Number(event.target.value))} />
    <p class="quiet" aria-live="polite">log-probability of the text ${number(total)} nats at this γ, ${number(sum(plain))} in plain decoding; most likely at γ ${scales[best]}
      ${state.moved ? html` · <button type="button" class="fork" onClick=${() => show(scales.indexOf(scaleOf(data.guidance)), false)}>back to γ ${scaleOf(data.guidance)}</button>` : ""}</p></div>`;
}

function Tree({ nodes, parent, current, onSelect }) {
  const children = nodes.filter((node) => node.parent === parent);
  if (!children.length) return "";
  return html`<ul class=${parent === null ? "tree" : ""}>${children.map((node) => html`<li key=${node.id}>
    <button type="button" class="button" aria-current=${node.id === current ? "true" : "false"} onClick=${() => onSelect(node.id)}>${node.at === null
      ? "first text" : html`<span class="quiet">from token ${node.at + 1}</span> <span class="token-name">${visible(node.token)}</span>`}
      <span class="quiet"> ${visible(node.data.steps.slice(node.at ?? 0).map((s) => s.chosen.text).join(""), 44)}</span></button>
    <${Tree} nodes=${nodes} parent=${node.id} current=${current} onSelect=${onSelect} /></li>`)}</ul>`;
}

export function WriteTab({ info, first }) {
  const start = info.examples.write[0];
  const [prompt, setPrompt] = useState(first?.prompt ?? start.prompt);
  const [guidance, setGuidance] = useState(first?.guidance ?? start.guidance);
  const [options, setOptions] = useState(first?.options ?? start.options);
  const [compare, setCompare] = useState(first?.compare ?? true);
  const [nodes, setNodes] = useState([]);
  const [plain, setPlain] = useState(null);
  const [current, setCurrent] = useState(null);
  const [others, setOthers] = useState(null);
  const count = useRef(0);
  const task = useRun();
  const node = nodes.find((one) => one.id === current);

  function hears(id) {
    const change = (make) => setNodes((old) => old.map((one) => (one.id === id ? make(one) : one)));
    return (kind, data) => {
      if (kind === "step") change((one) => ({ ...one, data: { ...one.data, steps: [...one.data.steps, data] } }));
      else if (kind === "end") change((one) => ({ ...one, data, busy: false }));
    };
  }
  const settle = (id) => setNodes((old) => old.filter((one) => one.id !== id || one.data.steps.length).map((one) => (one.id === id ? { ...one, busy: false } : one)));

  async function write(event) {
    event.preventDefault();
    const request = { prompt: sent(prompt), guidance: guidance.length ? guidance : null, options };
    const id = (count.current += 1);
    setNodes([{ id, parent: null, at: null, request, data: { ...EMPTY, prompt: typeof prompt === "string" ? prompt : "" }, busy: true }]);
    setCurrent(id);
    setOthers(null);
    setPlain(null);
    const jobs = [["write", request, hears(id)]];
    if (compare && guidance.length) {
      setPlain({ ...EMPTY, busy: true });
      jobs.push(["write", { ...request, guidance: null }, (kind, data) => setPlain((old) => (kind === "step" ? { ...old, steps: [...old.steps, data] } : kind === "end" ? data : old))]);
    }
    if (!(await task.start(jobs))) return;
    settle(id);
    setPlain((old) => (old?.busy ? { ...old, busy: false } : old));
  }

  async function fork(at, move) {
    const forced = [...node.data.steps.slice(0, at).map((step) => step.chosen.token), move.token];
    const id = (count.current += 1);
    const request = { ...node.request, forced };
    setNodes((old) => [...old, { id, parent: node.id, at, token: move.text, request, data: { ...EMPTY, prompt: node.data.prompt, branches: node.data.branches }, busy: true }]);
    setCurrent(id);
    setOthers(null);
    await task.start([["write", request, hears(id)]]);
    settle(id);  // also if another run has taken its place: the fork stays in the tree
  }

  const load = (one) => { setPrompt(one.prompt); setGuidance(one.guidance); setOptions(one.options); };
  const settings = { prompt, guidance, options, compare };
  useKept("write", settings);
  const request = node?.request ?? { prompt: sent(prompt), guidance: guidance.length ? guidance : null, options };
  const wanders = node && Boolean(node.request.guidance);
  return html`<div class="columns"><form class="settings" aria-label="settings" onSubmit=${write} onKeyDown=${startByKey}>
      <${Examples} examples=${info.examples.write} onChoose=${load} />
      <${Prompt} value=${prompt} onChange=${setPrompt} info=${info} />
      <${Guidance} info=${info} place="generate" value=${guidance} onChange=${setGuidance} error=${task.error} />
      <${Options} value=${options} onChange=${setOptions} fields=${info.text_options} />
      <label class="check"><input type="checkbox" checked=${compare} onChange=${(event) => setCompare(event.target.checked)} /> also without guidance</label>
      <${Go} task=${task} /></form>
    <section aria-label="what was written">
      ${node ? html`<${Explained} key=${node.id} data=${node.data} busy=${node.busy} others=${node.busy ? null : others} onFork=${task.busy ? null : fork} start=${node.at} title=${wanders ? "Guided" : "Plain"}
          beside=${plain ? html`<div><h2>Plain</h2><div class="text" aria-label="the text of plain decoding" role="group" aria-busy=${plain.busy ? "true" : "false"}><span class="prompt">${readable(node.data.prompt)}</span>${readable(plain.steps.map((step) => step.chosen.text).join(""))}${plain.busy ? html`<span class="caret" aria-hidden="true"></span>` : ""}</div></div>` : null}>
          ${node.busy || !("scorable" in node.data) ? "" : html`<${Scales} key=${node.id} node=${node} info=${info} onScores=${setOthers} />`}<//>
        ${nodes.length > 1 ? html`<h2>Forks</h2><${Tree} nodes=${nodes} parent=${null} current=${current} onSelect=${(id) => { setCurrent(id); setOthers(null); }} />` : ""}`
      : html`<p class="empty">Press Write: the text appears here token by token. Colours show how much guidance changed each token.</p>`}
      <${TakeAway} tab="write" task="write" request=${request} settings=${settings} data=${node && !node.busy && node.data.kind ? node.data : null} /></section></div>`;
}

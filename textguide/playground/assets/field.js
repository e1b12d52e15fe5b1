// A form of a method, generated from the description of its fields that the server sends.
import { html, useEffect, useId, useLayoutEffect, useRef, useState } from "textguide/html";

const SLIDERS = { scale: [0, 5, 0.1], weight: [-10, 10, 0.5], strength: [-3, 3, 0.1], particles: [1, 16, 1], max_branches: [1, 16, 1] };
/** Fields that the models of a tab refuse: the bundled captioner reads an image and no text. */
const HIDDEN = { caption: ["negative_prompt", "negative_system", "context", "prompt", "instruction"] };
const LISTED = ["classifier", "vector", "constraint"];
const KINDS = { regex: "pattern", "json-schema": "schema", grammar: "grammar" };
const BEGINNINGS = { regex: "[0-9]{4}-[0-9]{2}-[0-9]{2}", "json-schema": '{"type": "object"}', grammar: 'start: "yes" | "no"\n' };

/** What a number field takes, as words. */
function range(field) {
  const { minimum: low, maximum: high } = field;
  if (low !== null && low !== undefined && high !== null && high !== undefined) return `${low} to ${high}. `;
  if (low !== null && low !== undefined) return `${low} or more. `;
  return high !== null && high !== undefined ? `${high} or less. ` : "";
}

/** A text that is edited here and represents a value, which may also change elsewhere (if an example is chosen). */
function useText(value, written, onChange) {
  const [text, setText] = useState(() => written(value));
  const sent = useRef(value);
  useLayoutEffect(() => {  // before the page is painted: nobody sees the text of the value before
    if (JSON.stringify(value) !== JSON.stringify(sent.current)) setText(written(value));
    sent.current = value;
  }, [value]);
  return [text, (now, made) => { setText(now); sent.current = made; onChange(made); }];
}

function Json({ id, value, onChange, invalid, described }) {
  const [text, set] = useText(value, (now) => (now === null || now === undefined ? "" : JSON.stringify(now)), onChange);
  const [wrong, setWrong] = useState(false);
  const put = (now) => {
    let made = now;
    try {
      made = now.trim() === "" ? undefined : JSON.parse(now);
      setWrong(false);
    } catch {
      setWrong(true);
    }
    set(now, made);
  };
  return html`<input id=${id} type="text" class="code" value=${text} aria-invalid=${wrong || invalid ? "true" : "false"} aria-describedby=${described}
    placeholder="JSON" onInput=${(event) => put(event.target.value)} />`;
}

function Constraint({ id, value, onChange, described, invalid }) {
  const kind = value?.kind ?? "regex";
  const written = (now) => {
    const part = now?.[KINDS[now?.kind ?? "regex"]];
    return typeof part === "string" ? part : part === undefined ? "" : JSON.stringify(part, null, 1);
  };
  const [text, set] = useText(value, written, onChange);
  const [wrong, setWrong] = useState("");
  const put = (now, of = kind) => {
    setWrong("");
    if (of !== "json-schema") { set(now, { kind: of, [KINDS[of]]: now }); return; }
    try {
      set(now, { kind: of, schema: JSON.parse(now), whitespace: "none" });
    } catch (error) {
      setWrong(`not valid JSON: ${error.message}`);
      set(now, { kind: of, schema: now });
    }
  };
  return html`<div><select aria-label="kind of constraint" value=${kind} onChange=${(event) => put(BEGINNINGS[event.target.value], event.target.value)}>
      <option value="regex">regular expression</option><option value="json-schema">JSON schema</option><option value="grammar">grammar (Lark)</option></select>
    <textarea id=${id} class="code" rows=${kind === "regex" ? 2 : 6} spellcheck=${false} aria-invalid=${wrong || invalid ? "true" : "false"} aria-describedby=${described}
      value=${text} onInput=${(event) => put(event.target.value)}></textarea>
    ${wrong ? html`<small class="help">${wrong}</small>` : ""}</div>`;
}

export function Field({ field, value, onChange, info, invalid, method }) {
  const id = useId();
  const help = `${id}-help`;
  const shared = { id, "aria-describedby": help, "aria-invalid": invalid ? "true" : "false" };
  const current = value === undefined ? field.default : value;
  const label = html`<label class="name" for=${id}>${field.name}${field.required ? " *" : ""}</label>`;
  const text = html`<small class="help clamped" id=${help}>${range(field)}${field.help}</small>`;
  const put = (now) => onChange(now === "" || now === null ? undefined : now);
  let input;
  if (field.name === "constraint") {
    input = html`<${Constraint} key=${method} id=${id} value=${current} onChange=${onChange} described=${help} invalid=${invalid} />`;
  } else if (field.kind === "bool") {
    return html`<div class="field"><label class="check name"><input type="checkbox" ...${shared} checked=${Boolean(current)} onChange=${(e) => onChange(e.target.checked)} /> ${field.name}</label>${text}</div>`;
  } else if (field.name === "classifier" || field.name === "vector" || field.loads || field.choices) {
    const own = { classifier: info.classifiers, vector: ["smollm2-positive", ...info.named] }[field.name] ?? info.named;
    const choices = field.choices ?? own;
    const shown = current !== null && current !== undefined && !choices.includes(current) ? [current, ...choices] : choices;
    input = html`<select ...${shared} value=${current ?? ""} onChange=${(e) => put(e.target.value)}>
      ${current === null || current === undefined || !field.required ? html`<option value="">choose…</option>` : ""}${shown.map((one) => html`<option key=${one} value=${one}>${one}</option>`)}</select>`;
  } else if (field.kind === "int" || field.kind === "float") {
    const [low, high, step] = SLIDERS[field.name] ?? (Number.isFinite(field.minimum) && Number.isFinite(field.maximum) ? [field.minimum, field.maximum, field.kind === "int" ? 1 : 0.05] : []);
    const parse = (t) => (t === "" ? undefined : Number(t));
    input = html`<div class="inline"><input type="number" ...${shared} step=${field.kind === "int" ? 1 : "any"} min=${field.minimum ?? undefined} max=${field.maximum ?? undefined}
        value=${current ?? ""} placeholder=${field.optional ? "none" : ""} onInput=${(e) => onChange(parse(e.target.value))} />
      ${low !== undefined ? html`<input type="range" aria-label=${`${field.name}, slider`} min=${low} max=${high} step=${step} value=${current ?? low} onInput=${(e) => onChange(Number(e.target.value))} />` : ""}</div>`;
  } else if (field.kind === "text" && (value === undefined || typeof value === "string")) {
    input = html`<textarea ...${shared} rows="2" placeholder=${field.required ? "" : "none"} value=${current ?? ""} onInput=${(e) => put(e.target.value)}></textarea>`;
  } else if (field.kind === "str") {
    input = html`<input type="text" ...${shared} list=${field.suggestions ? `${id}-list` : undefined} value=${current ?? ""} onInput=${(e) => put(e.target.value)} />
      ${field.suggestions ? html`<datalist id=${`${id}-list`}>${field.suggestions.map((one) => html`<option key=${one} value=${one} />`)}</datalist>` : ""}`;
  } else {
    input = html`<${Json} key=${method} id=${id} value=${current} onChange=${onChange} invalid=${invalid} described=${help} />`;
  }
  return html`<div class="field">${label}${input}${text}</div>`;
}

function isHidden(field, place) {
  return (HIDDEN[place] ?? []).includes(field.name);
}

function Part({ form, part, onChange, onRemove, info, place, wrong }) {
  const put = (name, value) => {
    const next = { ...part, [name]: value };
    if (value === undefined) delete next[name];
    onChange(next);
  };
  const one = (field) => html`<${Field} key=${`${form.name} ${field.name}`} method=${form.name} field=${field} info=${info} value=${part[field.name]} invalid=${wrong === field.name} onChange=${(v) => put(field.name, v)} />`;
  // Fields that name something on the server's machine are only offered if the server was started with such names.
  const offered = form.fields.filter((field) => !isHidden(field, place) && (!field.loads || LISTED.includes(field.name) || info.named.length));
  const common = offered.filter((field) => field.common);
  return html`<fieldset class="part"><legend>${form.name}</legend>
    <div class="head"><p class="quiet">${form.summary} <em>${form.rule}</em>${form.paper ? html` (<a href=${`https://arxiv.org/abs/${form.paper}`} target="_blank" rel="noreferrer">arXiv ${form.paper}</a>)` : ""}</p>
      <button type="button" class="button" aria-label=${`remove ${form.name}`} onClick=${onRemove}>✕</button></div>
    ${offered.filter((field) => !field.common).map(one)}
    ${common.length ? html`<details open=${common.some((field) => field.name === wrong) || undefined}><summary>${common.length} more fields</summary>${common.map(one)}</details>` : ""}</fieldset>`;
}

/** Guidances that act together, each with its form. */
export function Guidance({ info, place, value, onChange, error }) {
  const id = useId();
  const offered = info.methods.filter((form) => form.places[place] === true && !form.fields.some((field) => field.required && isHidden(field, place)) && (info.named.length || !form.fields.some((field) => field.required && field.loads && !LISTED.includes(field.name))));
  const [chosen, setChosen] = useState(offered.find((form) => form.name === (value.length ? "caif" : "cfg"))?.name ?? offered[0]?.name);
  useEffect(() => { if (!offered.some((form) => form.name === chosen)) setChosen(offered[0]?.name); }, [place]);
  const wrong = /^([a-z_]+)=/.exec(error ?? "")?.[1];
  const form = info.methods.find((one) => one.name === chosen);
  const add = () => {
    const needed = Object.fromEntries(form.fields.filter((f) => f.required || f.name === "constraint" || f.name === "vector").map((f) => [f.name, form.example[f.name]]));
    if (form.name === "awrs" || (needed.constraint && typeof needed.constraint === "string")) needed.constraint = { kind: "regex", pattern: BEGINNINGS.regex };
    if (form.name === "feynman-kac") delete needed.constraint;
    if (form.name === "steering") needed.vector = "smollm2-positive";
    if (form.name === "gradient-free-classifier") Object.assign(needed, form.example);
    delete needed.method;
    onChange([...value, { method: form.name, ...needed }]);
  };
  return html`<fieldset class="group"><legend>Guidance</legend>
    ${value.length ? "" : html`<p class="quiet">none: plain decoding</p>`}
    ${value.map((part, i) => {
      const its = info.methods.find((one) => one.name === part.method);
      return its ? html`<${Part} key=${`${i} ${part.method}`} form=${its} part=${part} info=${info} place=${place} wrong=${wrong}
        onChange=${(next) => onChange(value.map((old, j) => (j === i ? next : old)))} onRemove=${() => onChange(value.filter((_, j) => j !== i))} />`
        : html`<p class="error" key=${i}>${part.method} is not a method of this tab <button type="button" class="button" onClick=${() => onChange(value.filter((_, j) => j !== i))}>remove it</button></p>`;
    })}
    <div class="field"><label class="name" for=${id}>${value.length ? "Compose with" : "Method"}</label>
      <div class="inline"><select id=${id} value=${chosen} onChange=${(event) => setChosen(event.target.value)}>
        ${offered.map((one) => html`<option key=${one.name} value=${one.name}>${one.name}${one.experimental ? " (experimental)" : ""}</option>`)}</select>
        <button type="button" class="button" onClick=${add}>Add</button></div>
      <small class="help">${form ? `for ${form.helps}; passes in addition to the conditional one: ${form.passes}` : ""}</small></div></fieldset>`;
}

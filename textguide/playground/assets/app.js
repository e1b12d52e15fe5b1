// The page: tabs, each of which keeps its state while others are looked at.
import { html, render, useEffect, useErrorBoundary, useRef, useState } from "textguide/html";
import { info as load } from "textguide/api";
import { CanvasTab } from "textguide/canvas-tab";
import { CaptionTab } from "textguide/caption-tab";
import { ConstrainTab } from "textguide/constrain-tab";
import { forget, opened, restored } from "textguide/link";
import { WriteTab } from "textguide/write-tab";

const TABS = [["write", "Write", WriteTab], ["constrain", "Constrain", ConstrainTab], ["diffuse", "Diffuse", CanvasTab], ["caption", "Caption", CaptionTab]];

/** One tab. If it cannot be drawn, the others go on, and it can be started again with its first example. */
function Guarded({ name, Tab, info, from }) {
  const [error, reset] = useErrorBoundary(() => forget(name));
  const first = restored(name) ?? (from.tab === name ? from.settings : null);
  return error ? html`<p class="error" role="alert">This tab cannot be drawn (${error.message}). <button type="button" class="button" onClick=${reset}>Start it again</button></p>`
    : html`<${Tab} info=${info} first=${first} />`;
}

function App() {
  const [info, setInfo] = useState(null);
  const [error, setError] = useState("");
  const [from, setFrom] = useState(opened);
  const [tab, setTab] = useState(TABS.some(([name]) => name === from.tab) ? from.tab : "write");
  const list = useRef(null);
  useEffect(() => { load().then(setInfo, (problem) => setError(problem.message)); }, []);
  useEffect(() => {
    const follow = () => {
      const next = opened();
      setFrom({ ...next, at: Date.now() });
      if (TABS.some(([name]) => name === next.tab)) setTab(next.tab);
    };
    addEventListener("hashchange", follow);
    return () => removeEventListener("hashchange", follow);
  }, []);
  function keys(event) {
    const names = TABS.map(([name]) => name);
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    const next = (names.indexOf(tab) + by + names.length) % names.length;
    setTab(names[next]);
    list.current.querySelectorAll("button")[next].focus();
  }
  return html`<a class="skip" href="#main" onClick=${(event) => { event.preventDefault(); document.getElementById("main").focus(); }}>to the page</a>
    <header class="top"><h1>textguide playground</h1>
      <div class="tabs" role="tablist" aria-label="what to do" ref=${list} onKeyDown=${keys}>${TABS.map(([name, title]) => html`<button type="button" key=${name} role="tab" id=${`tab-${name}`}
        aria-selected=${name === tab ? "true" : "false"} aria-controls=${`panel-${name}`} tabindex=${name === tab ? 0 : -1} onClick=${() => setTab(name)}>${title}</button>`)}</div>
      ${info ? html`<span class="quiet">${info.model} · textguide ${info.version}</span>` : ""}</header>
    <main id="main" tabindex="-1">${error ? html`<p class="error" role="alert">${error}</p>` : ""}
      ${from.damaged ? html`<p class="error" role="alert">The link's settings are damaged; the page starts with its own.</p>` : ""}
      ${info ? TABS.map(([name, , Tab]) => html`<div key=${name} role="tabpanel" id=${`panel-${name}`} aria-labelledby=${`tab-${name}`} hidden=${name !== tab}>
        <${Guarded} key=${`${name} ${from.at ?? 0}`} name=${name} Tab=${Tab} info=${info} from=${from} /></div>`) : error ? "" : html`<p role="status">loading…</p>`}</main>`;
}

render(html`<${App} />`, document.getElementById("app"));

// A run to take away: as code, as a link, as JSON, as one file.
import { html, useState } from "textguide/html";
import { ask, file } from "textguide/api";
import { link } from "textguide/link";

function save(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const anchor = document.createElement("a");
  anchor.href = url;
  anchor.download = name;
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

function Snippet({ title, text, onCopied }) {
  const copy = async () => {
    await navigator.clipboard.writeText(text);
    onCopied(`${title} was copied`);
  };
  return html`<div class="snippet"><div class="head"><h3>${title}</h3><button type="button" class="button" onClick=${copy}>Copy<span class="visually-hidden"> ${title}</span></button></div>
    <pre tabindex="0" aria-label=${title}><code>${text}</code></pre></div>`;
}

/**
 * @param task what the server calls it
 * @param request what it was asked
 * @param data what came of it; null: nothing yet
 * @param settings what the link holds
 */
export function TakeAway({ tab, task, request, settings, data }) {
  const [made, setMade] = useState(null);
  const [said, setSaid] = useState("");
  const [error, setError] = useState("");
  const attempt = async (what) => {
    setError("");
    try {
      await what();
    } catch (problem) {
      setError(problem.message);
    }
  };
  const code = () => attempt(async () => setMade({ ...(await ask("take-away", { task, request, address: `${location.origin}${location.pathname}` })), of: request }));
  const address = link(tab, settings);
  return html`<details class="away" onToggle=${(event) => { if (event.target.open && made?.of !== request) code(); }}><summary>Take away</summary>
    <p class="error" role="alert">${error}</p><p class="quiet" role="status">${said}</p>
    <div class="actions">
      <button type="button" class="button" onClick=${() => attempt(async () => { history.replaceState(null, "", address); await navigator.clipboard.writeText(address); setSaid("a link with these settings was copied; it stands in the address bar too"); })}>Copy a link with these settings</button>
      <button type="button" class="button" disabled=${!data} onClick=${() => save("textguide.json", "application/json", JSON.stringify(data, null, 1))}>JSON of the trace</button>
      <button type="button" class="button" disabled=${!data} onClick=${() => attempt(async () => save("textguide.html", "text/html", await file(data)))}>One HTML file</button></div>
    ${made ? [["Python", made.python], ["Terminal", made.cli], ["curl", made.curl]].filter(([, text]) => text).map(([title, text]) => html`<${Snippet} key=${title} title=${title} text=${text} onCopied=${setSaid} />`) : ""}
  </details>`;
}

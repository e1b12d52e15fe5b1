// Caption: an image, with and without guidance.
import { html, useId, useState } from "textguide/html";
import { Explained } from "textguide/explained";
import { readable } from "textguide/words";
import { TakeAway } from "textguide/away";
import { Go, Missing, Options, startByKey, useKept, useRun } from "textguide/controls";
import { Guidance } from "textguide/field";

const EMPTY = { prompt: "", steps: [], branches: [], summary: "", note: "" };
const LARGEST = 2_900_000;

export function CaptionTab({ info, first }) {
  const start = first ?? info.examples.caption[0];
  const [scene, setScene] = useState(start.scene ?? info.scenes[0]);
  const [image, setImage] = useState(null);
  const [guidance, setGuidance] = useState(start.guidance);
  const [options, setOptions] = useState(start.options);
  const [data, setData] = useState(null);
  const [plain, setPlain] = useState(null);
  const [wrong, setWrong] = useState("");
  const id = useId();
  const task = useRun();
  const source = image ? { image: image.data } : { scene };
  const request = { ...source, guidance: guidance.length ? guidance : null, options };
  function choose(event) {
    const file = event.target.files[0];
    setWrong("");
    if (!file) return;
    if (file.size > LARGEST) { setWrong(`${file.name} is larger than ${(LARGEST / 1e6).toFixed(1)} MB; choose a smaller file`); return; }
    const reader = new FileReader();
    reader.onload = () => setImage({ name: file.name, data: reader.result });
    reader.onerror = () => setWrong(`${file.name} cannot be read`);
    reader.readAsDataURL(file);
  }
  async function write(event) {
    event.preventDefault();
    setData({ ...EMPTY, busy: true });
    setPlain({ ...EMPTY, busy: true });
    const hears = (set) => (kind, values) => set((old) => (kind === "step" ? { ...old, steps: [...old.steps, values] } : kind === "end" ? values : old));
    const jobs = [["caption", request, hears(setData)]];
    if (guidance.length) jobs.push(["caption", { ...request, guidance: null }, hears(setPlain)]);
    else setPlain(null);
    if (!(await task.start(jobs))) return;
    setData((old) => (old?.steps.length ? { ...old, busy: false } : null));
    setPlain((old) => (old?.steps.length ? { ...old, busy: false } : null));
  }
  const settings = { scene, guidance, options };
  useKept("caption", settings);
  return html`<div class="columns"><form class="settings" aria-label="settings" onSubmit=${write} onKeyDown=${startByKey}>
      <${Missing} message=${info.missing.caption} />
      <fieldset class="group"><legend>Image</legend><div class="scenes">${info.scenes.map((name) => html`<label key=${name}>
          <input type="radio" name=${id} checked=${!image && scene === name} onChange=${() => { setScene(name); setImage(null); }} /><img src=${`./assets/${name}.png`} alt=${name.replaceAll("-", " ")} width="64" height="64" /></label>`)}</div>
        <label class="name" for=${`${id}-f`}>or a file of yours</label><input id=${`${id}-f`} type="file" accept="image/*" onChange=${choose} />
        <small class="help">The bundled captioner recognises one to three small drawn shapes like these, their colours and sizes. It does not see where they are, and describes anything else wrongly. The file stays on this machine.</small>
        <p class="error" role="alert">${wrong}</p></fieldset>
      <${Guidance} info=${info} place="caption" value=${guidance} onChange=${setGuidance} error=${task.error} />
      <${Options} value=${options} onChange=${setOptions} fields=${info.text_options} />
      <${Go} task=${task} label="Caption" /></form>
    <section aria-label="the caption"><img class="shown" src=${image ? image.data : `./assets/${scene}.png`} alt=${image ? image.name : scene.replaceAll("-", " ")} />
      ${plain ? html`<h2>Plain</h2><p class="text small">${readable(plain.steps.map((step) => step.chosen.text).join(""))}</p>` : ""}
      ${data ? html`<h2>${data.guidance === null ? "Plain" : "Guided"}</h2><${Explained} data=${data} busy=${data.busy} label="the caption" />`
        : html`<p class="empty">Press Caption: the plain and the guided caption of the image appear here.</p>`}
      <${TakeAway} tab="caption" task="caption" request=${request} settings=${settings} data=${data?.kind ? data : null} /></section></div>`;
}

// The page that travels as one file: values that stand in it, shown by the same components.
import { html, render } from "textguide/html";
import { Canvas } from "textguide/canvas";
import { Explained } from "textguide/explained";
import { Together } from "textguide/together";

const TITLES = { text: "What guidance did", rows: "Texts that were written together", canvas: "The canvas, step by step" };
const SHOWN = {
  text: (data) => html`<${Explained} data=${data} open />`,
  rows: (data) => html`<${Together} data=${data} />`,
  canvas: (data) => html`<${Canvas} data=${data} />`,
};

/** Show values of a kind that textguide writes inside an element. */
export function mount(element, data) {
  render(html`<h1>${TITLES[data.kind]}</h1>${data.label ? html`<p><code>${data.label}</code></p>` : ""}${SHOWN[data.kind](data)}`, element);
}

const values = document.getElementById("values");
if (values) {
  const main = document.getElementById("viewer");
  main.textContent = "";
  mount(main, JSON.parse(values.textContent));
}

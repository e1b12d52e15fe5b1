// Requests to the server of this page: values, and runs whose events are streamed.

const LOST = "the connection to the server was lost before the text was complete; is the server still running?";
const HEAD = { "Content-Type": "application/json" };

async function refused(response) {
  let message = `the server answered ${response.status}`;
  try {
    message = (await response.json()).error ?? message;
  } catch {
    // The body is not JSON: only the status is known.
  }
  return new Error(message);
}

function post(name, values, signal) {
  return fetch(`./api/${name}`, { method: "POST", headers: HEAD, body: JSON.stringify(values), signal }).catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new Error("the server cannot be reached; is it still running?");
  });
}

export async function info() {
  const response = await fetch("./api/info");
  if (!response.ok) throw await refused(response);
  return response.json();
}

export async function ask(name, values) {
  const response = await post(name, values);
  if (!response.ok) throw await refused(response);
  return response.json();
}

export async function file(values) {
  const response = await post("page", values);
  if (!response.ok) throw await refused(response);
  return response.text();
}

/** Run, and call `heard` with the name and the values of every event. */
export async function run(name, values, heard, signal) {
  const response = await post(name, values, signal);
  if (!response.ok) throw await refused(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let ended = false;
  const next = () => reader.read().catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new Error(LOST);
  });
  for (;;) {
    const { done, value } = await next();
    if (done) break;
    rest += value;
    const events = rest.split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const found = /^event: (.*)\ndata: (.*)$/s.exec(event);
      if (!found) continue;
      const data = JSON.parse(found[2]);
      if (found[1] === "error") throw new Error(data.error);
      ended = ended || found[1] === "end";
      heard(found[1], data);
    }
  }
  if (!ended) throw new Error(LOST);
}

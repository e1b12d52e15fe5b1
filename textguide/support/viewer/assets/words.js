// Tokens and numbers as a reader sees them; textguide/explanation/token_texts.py writes them so in a terminal.

const SHOWN = { " ": "␣", "\n": "↵", "\r": "␍", "\t": "⇥" };
const UNSEEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}]|(?! )\p{Zs}/u;

function escaped(character) {
  const code = character.codePointAt(0);
  if (code < 256) return `\\x${code.toString(16).padStart(2, "0")}`;
  return code < 65536 ? `\\u${code.toString(16).padStart(4, "0")}` : `\\U${code.toString(16).padStart(8, "0")}`;
}

/** All of a text to be seen, white space too. */
export function visible(text, limit = 40) {
  let shown = [...text].map((c) => SHOWN[c] ?? (UNSEEN.test(c) ? escaped(c) : c)).join("") || "∅";
  if (/^\p{M}/u.test(shown)) shown = `◌${shown}`;
  const characters = [...shown];
  return characters.length <= limit ? shown : `${characters.slice(0, limit - 1).join("")}…`;
}

/** A text with white space as it is, and escapes for what no browser draws. */
export function readable(text) {
  return [...text].map((c) => (c === "\n" || c === "\t" || c === " " || !UNSEEN.test(c) ? c : escaped(c))).join("");
}

/** A probability in six characters at most. */
export function percent(p) {
  if (!(p > 0)) return "0%";
  return p >= 0.0005 ? `${(100 * p).toFixed(1)}%` : p.toExponential(0);
}

/** A number of nats, or any other. */
export function number(value, digits = 2) {
  return value === null || value === undefined || !Number.isFinite(value) ? "–" : value.toFixed(digits).replace("-", "−");
}

/** The sum of the numbers; null where one of them is. */
export function sum(values) {
  return values.includes(null) ? null : values.reduce((a, b) => a + b, 0);
}

/** Probabilities from log-weights, where null stands for −∞. */
export function shares(logWeights) {
  const finite = logWeights.filter((w) => w !== null);
  if (!finite.length) return logWeights.map(() => 0);
  const top = Math.max(...finite);
  const raw = logWeights.map((w) => (w === null ? 0 : Math.exp(w - top)));
  const total = raw.reduce((a, b) => a + b, 0);
  return raw.map((w) => w / total);
}

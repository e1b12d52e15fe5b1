// A link that holds the settings of a tab, in the part of the address that no server sees.

function encoded(values) {
  const bytes = new TextEncoder().encode(JSON.stringify(values));
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

function decoded(text) {
  const bytes = Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));
  return JSON.parse(new TextDecoder().decode(bytes));
}

/** The address of a tab with these settings. */
export function link(tab, settings) {
  return `${location.origin}${location.pathname}#${tab}=${encoded(settings)}`;
}

/** The tab and the settings that the address holds; what is damaged counts as none. */
export function opened() {
  const [tab, text] = location.hash.slice(1).split("=");
  if (!text) return { tab: tab || null, settings: null };
  try {
    return { tab, settings: decoded(text) };
  } catch {
    return { tab, settings: null, damaged: true };
  }
}

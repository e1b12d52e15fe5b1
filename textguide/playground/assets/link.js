// Settings of a tab: in a link, in the part of the address that is not sent to a server, and kept for a reload.

function encoded(values) {
  const bytes = new TextEncoder().encode(JSON.stringify(values));
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

function decoded(text) {
  const bytes = Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));
  return JSON.parse(new TextDecoder().decode(bytes));
}

const key = (tab) => `textguide ${location.pathname} ${tab}`;

/** Keep the settings of a tab until the browser's tab is closed, so that reloading the page does not lose them. */
export function keep(tab, settings) {
  try {
    sessionStorage.setItem(key(tab), JSON.stringify({ hash: location.hash, settings }));
  } catch {
    // The browser does not allow it: nothing is kept.
  }
}

export function forget(tab) {
  try {
    sessionStorage.removeItem(key(tab));
  } catch {
    // Nothing was kept.
  }
}

/** The settings that were kept for a tab; null: none, or the address has other settings for it. */
export function restored(tab) {
  try {
    const found = JSON.parse(sessionStorage.getItem(key(tab)));
    return found && (found.hash === location.hash || opened().tab !== tab) ? found.settings : null;
  } catch {
    return null;
  }
}

/** The address of a tab with these settings. */
export function link(tab, settings) {
  return `${location.origin}${location.pathname}#${tab}=${encoded(settings)}`;
}

/** The tab and the settings that the address holds; damaged settings count as none. */
export function opened() {
  const [tab, text] = location.hash.slice(1).split("=");
  if (!text) return { tab: tab || null, settings: null };
  try {
    return { tab, settings: decoded(text) };
  } catch {
    return { tab, settings: null, damaged: true };
  }
}

// A scrubber over steps, with a button that plays them.
import { html, useEffect, useId, useState } from "textguide/html";

/** The step that is shown; it follows a run while it goes, until someone takes hold of the scrubber. */
export function usePlayer(count, live) {
  const [at, setAt] = useState(null);
  const [playing, setPlaying] = useState(false);
  const shown = count === 0 ? 0 : at === null ? count - 1 : Math.min(at, count - 1);
  useEffect(() => {
    if (!playing) return undefined;
    const timer = setInterval(() => setAt((now) => {
      const next = (now ?? -1) + 1;
      if (next >= count - 1) setPlaying(false);
      return Math.min(next, count - 1);
    }), 350);
    return () => clearInterval(timer);
  }, [playing, count]);
  useEffect(() => {
    if (live) setAt(null);
  }, [live]);
  return { count, shown, playing, to: (step) => { setPlaying(false); setAt(step); },
    toggle: () => { if (!playing && shown >= count - 1) setAt(0); else setAt(shown); setPlaying(!playing); } };
}

export function Player({ player, name = "step" }) {
  const id = useId();
  if (player.count < 2) return "";
  return html`<div class="player">
    <button type="button" onClick=${player.toggle}>${player.playing ? "Pause" : "Play"}</button>
    <label for=${id}>${name} ${player.shown + 1} of ${player.count}</label>
    <input id=${id} type="range" min="0" max=${player.count - 1} value=${player.shown} aria-valuetext=${`${name} ${player.shown + 1} of ${player.count}`}
      onInput=${(event) => player.to(Number(event.target.value))} /></div>`;
}

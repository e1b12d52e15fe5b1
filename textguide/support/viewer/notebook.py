"""The components in a notebook: a widget of anywidget around the values that a page is made of."""

from __future__ import annotations

import graphlib
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from string import Template
from typing import Any

from ..errors import MissingExtraError
from .page import KINDS, assets, import_map

_IMPORT = re.compile(r'(?:from|import)\s*"([^"]+)"')
# A notebook has no import map: the modules become blobs, each behind those that it imports. The style sheet is that of
# a page, and stays inside a shadow root.
_MODULE = Template("""const MODULES = $modules;
const STYLE = $style;
let loaded;
function load() {
  const urls = {};
  for (const [name, source] of MODULES) {
    const text = source.replace(/(from|import)(\\s*)"([^"]+)"/g, (all, word, gap, wanted) =>
      wanted in urls ? `$${word}$${gap}"$${urls[wanted]}"` : all);
    urls[name] = URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
  }
  return import(urls["textguide/standalone"]);
}
async function render({ model, el }) {
  const { mount } = await (loaded ??= load());
  const root = el.shadowRoot ?? el.attachShadow({ mode: "open" });
  root.innerHTML = "<style></style><div class='viewer page'></div>";
  root.firstChild.textContent = STYLE;
  const show = () => mount(root.lastChild, model.get("values"));
  model.on("change:values", show);
  show();
  return () => model.off("change:values", show);
}
export default { render };
""")


def widget(values: Mapping[str, Any]) -> Any:
    """A widget that shows ``values``; setting its ``values`` shows others in its place.

    Args:
        values: as :func:`textguide.support.viewer.page` takes them.

    Raises:
        ValueError: the kind is unknown.
        MissingExtraError: anywidget is not installed.
    """
    return _viewer()(values=dict(values))


@lru_cache(maxsize=1)
def module() -> str:
    """The widget's JavaScript: one module that needs no other file."""
    files = assets()
    names: dict[str, str] = {}
    for name, file in json.loads(import_map({file: file for file in files if file.endswith("js")}))["imports"].items():
        names[name] = files[file].decode()
    graph = {name: set(_IMPORT.findall(source)) & names.keys() for name, source in names.items()}
    order = list(graphlib.TopologicalSorter(graph).static_order())
    style = files["viewer.css"].decode().replace(":root", ":host")
    style = re.sub(r"^body(, \.viewer)? {", ".viewer {", style, flags=re.MULTILINE)
    return _MODULE.substitute(modules=json.dumps([[name, names[name]] for name in order]), style=json.dumps(style))


@lru_cache(maxsize=1)
def _viewer() -> Any:
    try:
        import anywidget
        import traitlets
    except ImportError as error:
        raise MissingExtraError("anywidget", "notebook", "a widget") from error

    class Viewer(anywidget.AnyWidget):
        """What guidance did, to be looked at in a notebook."""

        _esm = module()
        values = traitlets.Dict().tag(sync=True)

        @traitlets.validate("values")
        def _known(self, proposal: Any) -> dict[str, Any]:
            found: dict[str, Any] = proposal["value"]
            if found.get("kind") not in KINDS:
                raise ValueError(f"kind={found.get('kind')!r} cannot be shown; use one of {', '.join(KINDS)}")
            return found

    return Viewer

"""The components in a notebook: an anywidget around the values of a page."""

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
# A notebook has no import map, so the modules become blobs, each after the modules that it imports. The style sheet
# is that of a page; the shadow root keeps it from the rest of the notebook.
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
    """A widget that shows ``values``; setting its ``values`` shows others instead.

    Args:
        values: as for :func:`textguide.support.viewer.page`.

    Raises:
        ValueError: the kind is unknown.
        MissingExtraError: anywidget is not installed.
    """
    return _viewer()(values=dict(values))


@lru_cache(maxsize=1)
def module() -> str:
    """The widget's JavaScript, one module that does not need other files."""
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
        """Shows in a notebook what guidance did."""

        _esm = module()
        values = traitlets.Dict().tag(sync=True)

        @traitlets.validate("values")
        def _known(self, proposal: Any) -> dict[str, Any]:
            values: dict[str, Any] = proposal["value"]
            if values.get("kind") not in KINDS:
                raise ValueError(f"kind={values.get('kind')!r} cannot be shown; use one of {', '.join(KINDS)}")
            return values

    return Viewer

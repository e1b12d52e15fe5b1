"""``python -m textguide.eval``: lm-eval's own command, to which the models and tasks of textguide are known."""

from __future__ import annotations

from .lm_eval_models.command import main

raise SystemExit(main())

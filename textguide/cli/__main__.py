"""``python -m textguide.cli``, for launchers that start modules."""

from . import main

raise SystemExit(main())

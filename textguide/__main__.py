"""``python -m textguide``, for launchers that start modules."""

from .cli import main

raise SystemExit(main())

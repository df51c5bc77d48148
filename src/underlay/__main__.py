"""``python -m underlay`` is the command ``underlay``."""

from __future__ import annotations

import sys

from underlay.cli.main import main

sys.exit(main())

"""What lies in guest/ and kinds/ is run inside the machine alone: see __main__.py."""

from __future__ import annotations

import os

collect_ignore = [] if "UNDERLAY_VM" in os.environ else ["guest", "kinds"]

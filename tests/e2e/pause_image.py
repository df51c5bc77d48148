"""An OCI image that holds busybox alone and answers HTTP on port 8080: the sandbox's own container."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from tests.e2e import oci_image

if TYPE_CHECKING:
    from pathlib import Path

NAME = "underlay.test/pause:1"
PORT = 8080
GREETING = b"this is the sandbox\n"


def write(path: Path) -> None:
    """The image as a tar. Needs the statically linked busybox."""
    busybox = shutil.which("busybox")
    assert busybox is not None, "needs busybox-static"
    with open(busybox, "rb") as program:
        layer = oci_image.tar({"bin/busybox": (program.read(), 0o755), "www/index.html": (GREETING, 0o644)})
    entrypoint = ["/bin/busybox", "httpd", "-f", "-p", f"[::]:{PORT}", "-h", "/www"]
    oci_image.write(path, NAME, layer, {"Entrypoint": entrypoint})

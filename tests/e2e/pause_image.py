"""An OCI image that holds busybox alone and answers HTTP on port 8080: the sandbox's own container."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import shutil
import tarfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

NAME = "underlay.test/pause:1"
PORT = 8080
GREETING = b"this is the sandbox\n"


def write(path: Path) -> None:
    """An OCI image layout (image-spec, image-layout.md) as a tar. Needs the statically linked busybox."""
    busybox = shutil.which("busybox")
    assert busybox is not None, "needs busybox-static"
    with open(busybox, "rb") as program:
        layer = _tar({"bin/busybox": (program.read(), 0o755), "www/index.html": (GREETING, 0o644)})
    config = {
        "architecture": _architecture(),
        "os": "linux",
        "config": {"Entrypoint": ["/bin/busybox", "httpd", "-f", "-p", f"[::]:{PORT}", "-h", "/www"]},
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
    }
    blobs = {_digest(blob): blob for blob in (layer, _json(config))}
    manifest = {
        "schemaVersion": 2,
        "config": _descriptor("application/vnd.oci.image.config.v1+json", _json(config)),
        "layers": [_descriptor("application/vnd.oci.image.layer.v1.tar", layer)],
    }
    blobs[_digest(_json(manifest))] = _json(manifest)
    reference = _descriptor("application/vnd.oci.image.manifest.v1+json", _json(manifest))
    index = {"schemaVersion": 2, "manifests": [reference | {"annotations": {"io.containerd.image.name": NAME}}]}
    files = {"oci-layout": _json({"imageLayoutVersion": "1.0.0"}), "index.json": _json(index)}
    files |= {f"blobs/{digest.replace(':', '/')}": blob for digest, blob in blobs.items()}
    path.write_bytes(_tar({name: (content, 0o644) for name, content in files.items()}))


def _tar(files: dict[str, tuple[bytes, int]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, (content, mode) in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), mode
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def _architecture() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def _descriptor(media_type: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _digest(blob), "size": len(blob)}

"""An OCI image of one layer as a tar (image-spec, image-layout.md), for `ctr images import`."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


def write(path: Path, name: str, layer: bytes, config: dict[str, Any]) -> None:
    """``layer`` is a tar; ``config`` what a container is started with: Entrypoint, Env, …"""
    image = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()],
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
    }
    blobs = {_digest(blob): blob for blob in (layer, _json(image))}
    manifest = {
        "schemaVersion": 2,
        "config": _descriptor("application/vnd.oci.image.config.v1+json", _json(image)),
        "layers": [_descriptor("application/vnd.oci.image.layer.v1.tar", layer)],
    }
    blobs[_digest(_json(manifest))] = _json(manifest)
    reference = _descriptor("application/vnd.oci.image.manifest.v1+json", _json(manifest))
    index = {"schemaVersion": 2, "manifests": [reference | {"annotations": {"io.containerd.image.name": name}}]}
    files = {"oci-layout": _json({"imageLayoutVersion": "1.0.0"}), "index.json": _json(index)}
    files |= {f"blobs/{digest.replace(':', '/')}": blob for digest, blob in blobs.items()}
    path.write_bytes(tar({name: (content, 0o644) for name, content in files.items()}))


def tar(files: dict[str, tuple[bytes, int]]) -> bytes:
    """Regular files: path to content and mode."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, (content, mode) in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), mode
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def _descriptor(media_type: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _digest(blob), "size": len(blob)}

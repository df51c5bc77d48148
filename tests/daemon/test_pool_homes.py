"""Where a daemon takes address pools from: what is set counts, and "auto" goes by what there is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from underlay.daemon.config import KubeSettings, Settings
from underlay.daemon.pools import in_cluster
from underlay.kube.manifests import Manifests

if TYPE_CHECKING:
    from pathlib import Path

    from underlay.daemon.config import PoolHome

POOL = """
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: a}
spec: {subnet: 10.1.0.0/16}
"""
NETWORK = """
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: a}
"""
API = KubeSettings(kubeconfig="/k", node_name="n1")


def nobody(*_: Any, **__: Any) -> None:
    """A log that nobody reads."""


@pytest.mark.parametrize(
    ("pools", "kube", "text", "wanted"),
    [
        ("auto", KubeSettings(), POOL, False),
        ("auto", KubeSettings(), NETWORK, False),
        ("auto", API, NETWORK, True),
        ("auto", API, None, True),  # no such directory
        ("auto", API, POOL, False),
        ("auto", API, POOL.replace("IPPool", "Subnet"), False),
        ("auto", API, "a: [", False),  # a file that cannot be read may have a pool
        ("manifests", API, NETWORK, False),
        ("cluster", API, POOL, True),
    ],
)
def test_where_pools_are(tmp_path: Path, pools: PoolHome, kube: KubeSettings, text: str | None, wanted: bool) -> None:
    directory = tmp_path / "manifests"
    if text is not None:
        directory.mkdir()
        (directory / "file.yaml").write_text(text)
    settings = Settings(pools=pools, kube=kube, manifest_dir=str(directory))
    assert in_cluster(settings, Manifests(settings.manifest_dir, nobody)) is wanted

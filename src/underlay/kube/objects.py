"""The Kubernetes objects that policy reads, trimmed to what it uses, as frozen values."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from underlay.ipam.pools.surroundings import Owner

RESOURCE_NAME = "k8s.v1.cni.cncf.io/resourceName"
MIRROR = "kubernetes.io/config.mirror"
CONFIG_SOURCE = "kubernetes.io/config.source"

_LABEL = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*")


def is_label(text: str) -> bool:
    """A DNS-1123 label: 1 to 63 of a-z, 0-9 and "-", neither first nor last a "-". What namespaces are named by."""
    return _LABEL.fullmatch(text) is not None


def is_subdomain(text: str) -> bool:
    """A DNS-1123 subdomain: labels joined by dots, at most 253 characters. What objects are named by."""
    return len(text) <= 253 and _SUBDOMAIN.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod. ``uid`` is empty where the source knows none (a manifest that nobody submitted). ``static``: the object
    mirrors a pod that the kubelet took from a file or a URL, so its UID is not the one the runtime is told. ``owner``
    is its controller.
    """

    namespace: str
    name: str
    uid: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    static: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    owner: Owner | None = None

    @property
    def event_uid(self) -> str:
        """What an Event on the pod names it by: a static pod's is the kubelet's own for it, which is the mark on its
        mirror, as `kubectl describe` looks for it.
        """
        return self.annotations.get(MIRROR, self.uid)

    @property
    def reference(self) -> Reference:
        """What an Event on the pod is about."""
        return Reference("Pod", self.namespace, self.name, self.event_uid)


@dataclass(frozen=True, slots=True)
class Reference:
    """What an Event is about, as its involvedObject names it; ``namespace`` is empty for a Node."""

    kind: Literal["Pod", "Node"]
    namespace: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class NetworkAttachmentDefinition:
    """A NetworkAttachmentDefinition (k8s.cni.cncf.io/v1). ``config`` is spec.config, CNI JSON as written, None where it
    is absent; ``resource_name`` names the device plugin's resource it is tied to, or is empty.
    """

    namespace: str
    name: str
    config: str | None = None
    resource_name: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)


def node_reference(name: str) -> Reference:
    """What an Event on a node is about. The kubelet's own Events have the node's name in place of its UID, and
    `kubectl describe node` looks for both, so the API server need not be asked for the UID.
    """
    return Reference("Node", "", name, name)


def pod(
    *,
    namespace: str,
    name: str,
    uid: str,
    annotations: Mapping[str, str],
    labels: Mapping[str, str] | None = None,
    owner: Owner | None = None,
) -> Pod:
    """A pod from its metadata; what the annotations say of its origin decides ``static``."""
    static = MIRROR in annotations or annotations.get(CONFIG_SOURCE, "api") != "api"
    return Pod(namespace, name, uid, annotations, static, labels or {}, owner)


def network(
    *, namespace: str, name: str, config: str | None, annotations: Mapping[str, str]
) -> NetworkAttachmentDefinition:
    """A NetworkAttachmentDefinition from its metadata and spec.config. A config of blanks counts as absent."""
    given = config if config and not config.isspace() else None
    return NetworkAttachmentDefinition(namespace, name, given, annotations.get(RESOURCE_NAME, ""), annotations)

"""The project's two reference networks to the letter, comments and all, as their documentation has them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

NAMES = ("macvlan-standalone", "macvlan-vlan0-overlay")


def network(name: str, parent: str = "eth0") -> dict[str, Any]:
    """The CNI configuration: comments stripped, the parent NIC named; nothing else is changed."""
    document = yaml.safe_load((Path(__file__).parent / f"{name}.yaml").read_text())
    assert document["metadata"] == {"name": name, "namespace": "kube-system"}
    config: dict[str, Any] = json.loads(re.sub(r"(?m)#.*$", "", document["spec"]["config"]))
    assert config["plugins"][0]["master"] == "enp4s0f0np0"
    config["plugins"][0]["master"] = parent
    return config


def pool(name: str, **spec: Any) -> dict[str, Any]:
    """A SpiderIPPool."""
    kind = {"apiVersion": "spiderpool.spidernet.io/v2beta1", "kind": "SpiderIPPool"}
    return {**kind, "metadata": {"name": name}, "spec": spec}

"""Every call of the recorded protocol: what the parsers say of it before any plugin runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from underlay.cni import config, versions
from underlay.cni.request import Verb, parse
from underlay.errors import UnderlayError

RECORDED = json.loads((Path(__file__).parent.parent / "conformance" / "protocol.json").read_text())
DEFAULTS = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c0ffee01",
    "CNI_NETNS": "/var/run/netns/pod",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/opt/cni/bin",
}
CALLS = [
    pytest.param(call, id=f"{group['name']}[{n}]")
    for group in RECORDED["groups"]
    for n, call in enumerate(group["calls"])
]


@pytest.mark.parametrize("call", CALLS)
def test_the_parsers_agree_with_the_recorded_answer(call):
    env = {key: value for key, value in {**DEFAULTS, **call.get("env", {})}.items() if value is not None}
    stdin = call["stdin"] if isinstance(call["stdin"], str) else json.dumps(call["stdin"])
    raw = stdin.replace('"$PREV"', '{"cniVersion":"0.4.0"}').encode()
    recorded = call["expect"]["stdout"] or {}
    code = recorded.get("code", 0) if call["expect"]["exit"] else 0
    if "CNI_COMMAND" not in env:
        return  # a call without a verb is answered by the shim
    if 0 < code < 100:
        with pytest.raises(UnderlayError) as refused:
            understand(call["plugin"], env, raw)
        assert refused.value.code == code
        return
    verb = understand(call["plugin"], env, raw)
    if not code and "cniVersion" in recorded and verb is not Verb.VERSION:
        assert json.loads(versions.encode(versions.decode(recorded), recorded["cniVersion"])) == recorded


def understand(plugin: str, env: dict[str, str], stdin: bytes) -> Verb:
    request = parse(plugin, env, stdin)
    if request.verb is not Verb.VERSION:
        versions.check_verb(config.parse_plugin(request.stdin).version, request.verb)
    return request.verb

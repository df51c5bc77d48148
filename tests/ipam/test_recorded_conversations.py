"""Every recorded call to host-local and static themselves, through their plugins: result or refusal."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.keep import Keep

from underlay.cni import versions
from underlay.cni.config import parse_plugin
from underlay.cni.request import Verb, parse
from underlay.errors import UnderlayError
from underlay.ipam.undo import release
from underlay.net.undo import UndoLog
from underlay.plugins import host_local, static
from underlay.plugins.context import Call, Context

RECORDED = json.loads((Path(__file__).parent.parent / "conformance" / "protocol.json").read_text())
PLUGINS = {each.name: each for each in (host_local.PLUGIN, static.PLUGIN)}
GROUPS = [
    pytest.param(group["calls"], id=group["name"])
    for group in RECORDED["groups"]
    if group["calls"][0]["plugin"] in PLUGINS and group["name"] != "version"
]
DEFAULTS = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c0ffee01",
    "CNI_NETNS": "/var/run/netns/pod",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/opt/cni/bin",
}


def context(undo: UndoLog) -> Context:
    nowhere = SimpleNamespace()  # IPAM plugins touch no namespace
    return Context(nowhere, None, undo, nowhere, nowhere, time.monotonic() + 30, print)


def answer(call: dict, data_dir: str, undo: UndoLog) -> bytes:
    stdin = json.dumps(call["stdin"]).replace("/tmp/cf-host-local", data_dir)
    request = parse(call["plugin"], {**DEFAULTS, **call.get("env", {})}, stdin.encode())
    conf = parse_plugin(request.stdin)
    asked = Call(conf, request.container_id, request.netns, request.ifname, request.args)
    plugin = PLUGINS[call["plugin"]]
    if request.verb is Verb.ADD:
        return versions.encode(plugin.add(asked, context(undo)), conf.version)
    assert request.verb is Verb.DEL
    plugin.delete(asked, context(undo))
    return b"null"


@pytest.mark.parametrize("calls", GROUPS)
def test_a_recorded_conversation_is_answered_alike(calls, tmp_path):
    undo = UndoLog(lambda entries: None)
    for call in calls:
        if call["expect"]["exit"]:
            with pytest.raises(UnderlayError):
                answer(call, str(tmp_path), undo)
        else:
            assert json.loads(answer(call, str(tmp_path), undo)) == call["expect"]["stdout"]
    for entry in reversed(undo.entries):
        release(entry)
    left = [path.name for path in tmp_path.glob("*/*")]
    assert [name for name in left if name != "lock" and not name.startswith(("last", ".spare-"))] == []


def test_check_status_and_gc_reach_the_store(tmp_path):
    stdin = {"cniVersion": "1.1.0", "name": "net", "ipam": {"subnet": "10.1.0.0/24", "dataDir": str(tmp_path)}}
    asked = Call(parse_plugin(json.dumps(stdin).encode()), "c1", "/run/netns/pod", "eth0", {})
    ctx, plugin = context(UndoLog(lambda entries: None)), host_local.PLUGIN
    plugin.add(asked, ctx)
    plugin.check(asked, ctx)
    plugin.status(asked, ctx)
    plugin.gc(asked, ctx, Keep({("c1", "eth0")}))
    plugin.check(asked, ctx)
    plugin.gc(asked, ctx, Keep())
    with pytest.raises(UnderlayError, match="c1"):
        plugin.check(asked, ctx)

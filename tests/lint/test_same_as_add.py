"""What lint calls an error, the verbs refuse, and the other way round; and nothing makes it fall over."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from underlay.cni.config import parse_network
from underlay.daemon.builtin import ALLOCATORS, PLUGINS
from underlay.errors import NamespaceGone, UnderlayError
from underlay.ipam.allocator import Holder
from underlay.kube import objects
from underlay.multus import config as multus
from underlay.multus import lint_objects
from underlay.multus.annotations import NETWORKS, parse
from underlay.multus.findings import Severity, Subject
from underlay.multus.lint import Linter
from underlay.multus.lint_objects import Known
from underlay.multus.review import review
from underlay.net.netns import Namespace
from underlay.net.undo import UndoLog
from underlay.plugins.context import Call, Context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from underlay.cni.result import Result

LINTER = Linter(PLUGINS, ALLOCATORS)
SUBJECT = Subject("x")
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-2, 70000), st.text(max_size=8), st.just(1.5))
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
SUBNETS = st.sampled_from(["10.1.0.0/24", "10.1.0.0/25", "10.1.0.7/24", "fd00::/64", "10.1.0.0/31", "10.1.0.0", ""])
ADDRESSES = st.sampled_from(["10.1.0.1", "10.1.0.9", "10.9.0.1", "fd00::1", "10.1.0.9/24", "x", ""])


def odd(*values: Any) -> st.SearchStrategy[Any]:
    """One of the values, or now and then anything at all."""
    return st.sampled_from(values) | st.sampled_from(values) | JSON


def keys(**given: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=given)


RANGE = keys(subnet=SUBNETS, rangeStart=ADDRESSES, rangeEnd=ADDRESSES, gateway=ADDRESSES)
ROUTES = st.lists(keys(dst=odd("0.0.0.0/0", "::/0", "10.2.0.0/16"), gw=ADDRESSES), max_size=2) | JSON
HOST_LOCAL = keys(
    subnet=SUBNETS,
    rangeStart=ADDRESSES,
    rangeEnd=ADDRESSES,
    gateway=ADDRESSES,
    routes=ROUTES,
    ranges=st.lists(st.lists(RANGE, max_size=2), max_size=2) | JSON,
    dataDir=st.just("relative"),
).map(lambda section: {"type": "host-local", **section})
STATIC = keys(
    addresses=st.lists(st.fixed_dictionaries({"address": ADDRESSES}, optional={"gateway": ADDRESSES}), max_size=2)
    | JSON,
    routes=ROUTES,
).map(lambda section: {"type": "static", **section})
ARGS = keys(cni=keys(ips=st.lists(ADDRESSES, max_size=2) | JSON, mac=odd("0a:00:00:00:00:01", "x")))
CLUSTER = odd(["10.240.0.0/12"], ["fd00::/48", " 10.0.0.0/8"], [], ["x"])
MACVLAN = keys(
    master=odd("eth0"),
    mode=odd("bridge", "vepa", "x"),
    mtu=odd(0, 1500, -1),
    mac=odd("0a:00:00:00:00:01", "x"),
    linkInContainer=odd(True),
    bcqueuelen=odd(1, -1, 1 << 33),
    args=ARGS,
    acceptRA=odd(True),
)
SHARED = {
    "master": odd("eth0"),
    "mtu": odd(0, 1500, -1),
    "linkInContainer": odd(True),
    "args": ARGS,
    "acceptRA": odd(True),
}
IPVLAN = keys(mode=odd("l2", "l3s", "x", ""), **SHARED).map(lambda conf: {"type": "ipvlan", **conf})
VLAN = keys(vlanId=odd(0, 100, 4094, 4095, -1), **SHARED).map(lambda conf: {"type": "vlan", **conf})
HIJACK = keys(
    overlay_hijack_subnet=CLUSTER,
    service_hijack_subnet=CLUSTER,
    additional_hijack_subnet=CLUSTER,
    migrate_route=odd(-1, 3),
    rp_filter=keys(set_host=odd(True), value=odd(0, 9)) | JSON,
    skip_call=odd(True),
    mac_prefix=odd("0a:1b", "01:00", "x"),
    only_op_mac=odd(True),
    host_rule_table=odd(500, 254, -1),
    ip_conflict=keys(enabled=odd(True), interval=odd("1s", "x", "0s"), retries=odd(1, -1)) | JSON,
    log_options=keys(log_level=odd("info", "x"), log_file=odd("/x", "x"), log_max_size=odd(1, -1)) | JSON,
)


def errors(conf: dict[str, Any]) -> list[str]:
    looked = LINTER.network(SUBJECT, json.dumps(conf).encode())
    return [each.message for each in looked.findings if each.severity is Severity.ERROR]


def refusal(run: Callable[[], object]) -> str:
    """What the run is refused with; "" where it gets as far as the pod's namespace, which there is none of."""
    try:
        run()
    except NamespaceGone:
        return ""
    except UnderlayError as error:
        return error.message
    return ""


@pytest.fixture(scope="module")
def context() -> Iterator[Context]:
    with Namespace.current() as host:
        yield Context(
            host=host,
            pod=None,
            undo=UndoLog(lambda _: None),
            ipam=None,  # type: ignore[arg-type]
            devices=None,  # type: ignore[arg-type]
            deadline=time.monotonic() + 600,
            log=lambda *_, **__: None,
        )


def add(conf: dict[str, Any], prev: Result | None, context: Context) -> str:
    """What the plugin's own ADD says to the one plugin's configuration before it enters the pod."""
    try:
        plugin = parse_network(json.dumps(conf).encode()).plugins[0]
    except UnderlayError as error:
        return error.message
    call = Call(replace(plugin, prev=prev), "c1", "", "net1", {})
    return refusal(lambda: PLUGINS[plugin.type].add(call, context))


@given(st.sampled_from(["1.0.0", "0.2.0"]), MACVLAN)
def test_macvlan_is_an_error_exactly_where_its_add_refuses(context, version, keys):
    conf = {"cniVersion": version, "name": "lan", "type": "macvlan", **keys}
    assert errors(conf)[:1] == [said for said in [add(conf, None, context)] if said]


@given(st.sampled_from(["1.0.0", "0.2.0"]), IPVLAN | VLAN)
def test_ipvlan_and_vlan_are_an_error_exactly_where_their_add_refuses(context, version, keys):
    conf = {"cniVersion": version, "name": "lan", **keys}
    assert errors(conf)[:1] == [said for said in [add(conf, None, context)] if said]


@given(st.sampled_from(["veth", "router"]), HIJACK)
def test_a_meta_plugin_is_an_error_exactly_where_its_add_refuses(context, kind, keys):
    conf = {"cniVersion": "1.0.0", "name": "lan", "type": kind, **keys}
    assert errors(conf)[:1] == [said for said in [add(conf, None, context)] if said]


@given(st.sampled_from(["1.0.0", "0.2.0"]), HOST_LOCAL | STATIC, ARGS)
def test_an_ipam_section_is_an_error_exactly_where_its_add_refuses(tmp_path_factory, version, section, args):
    directory = str(tmp_path_factory.mktemp("networks"))
    conf = {
        "cniVersion": version,
        "name": "lan",
        "type": "macvlan",
        "ipam": {"dataDir": directory, **section},
        "args": args,
    }
    conf["args"] = {"cni": {key: value for key, value in args.get("cni", {}).items() if key != "mac"}}
    said = ""
    try:
        plugin = parse_network(json.dumps(conf).encode()).plugins[0]
        allocator = ALLOCATORS[plugin.ipam_type]
        allocator.add(plugin, Holder("c1", "net1"), {}, record=lambda _: None, deadline=time.monotonic() + 60)
    except UnderlayError as error:
        said = error.message
    if "no free address" in said:  # a range that holds its gateway alone: what lint warns of, and ADD finds out
        return
    assert errors(conf)[:1] == [each for each in [said] if each]


@given(
    keys(
        cniVersion=odd("1.0.0", "9"),
        name=odd("m"),
        clusterNetwork=odd("a", "/x"),
        defaultNetworks=odd(["a"], [""]),
        confDir=odd("/x", "x"),
        globalNamespaces=odd("default,a", ["A"]),
        namespaceIsolation=odd(True),
        delegates=st.just([{"type": "bridge", "name": "b"}]),
        multusNamespace=odd("a", "A"),
        logLevel=odd("debug"),
    )
)
def test_a_multus_configuration_is_an_error_exactly_where_its_parsing_refuses(keys):
    raw = json.dumps({"type": "multus", **keys}).encode()
    looked, _ = lint_objects.configuration(LINTER, SUBJECT, raw)
    found = [each.message for each in looked.findings if each.severity is Severity.ERROR]
    assert bool(found) == bool(refusal(lambda: multus.parse(raw)))


@given(
    st.text(alphabet='ab/@,[]{}":-.A 1', max_size=20)
    | st.lists(
        keys(
            name=odd("a"),
            namespace=odd("b"),
            ips=odd(["10.1.0.1/24"], ["x"]),
            mac=odd("0a:00:00:00:00:01"),
            interface=odd("net1"),
            bandwidth=JSON,
            portMappings=JSON,
        ),
        max_size=3,
    ).map(json.dumps)
)
def test_an_annotation_is_an_error_exactly_where_its_parsing_refuses(text):
    pod = objects.pod(namespace="shop", name="p", uid="", annotations={NETWORKS: text})
    found = lint_objects.pod(SUBJECT, pod, "metadata", Known())
    said = refusal(lambda: parse(text, "shop"))
    told = [each.message for each in found if each.severity is Severity.ERROR]
    if said:
        assert told == [said]
    else:
        assert all("both ask for" in each for each in told)


ENDINGS = st.sampled_from(["x.yaml", "x.json", "x.conf", "x.conflist", "<stdin>"])


@given(ENDINGS, st.binary(max_size=60))
def test_any_bytes_are_answered(name, raw):
    for finding in review([(name, raw)], LINTER):
        assert finding.message


@given(ENDINGS, JSON | HOST_LOCAL | HIJACK | MACVLAN | IPVLAN | VLAN)
def test_any_json_is_answered(name, value):
    review([(name, json.dumps(value).encode())], LINTER)


@given(
    st.sampled_from(["Pod", "Deployment", "CronJob", "NetworkAttachmentDefinition", "List"]),
    st.sampled_from(["v1", "apps/v1", "batch/v1", "k8s.cni.cncf.io/v1"]),
    JSON,
    JSON | keys(config=JSON.map(json.dumps), template=JSON, jobTemplate=JSON),
)
def test_any_object_is_answered(kind, version, metadata, spec):
    document = {"kind": kind, "apiVersion": version, "metadata": metadata, "spec": spec, "items": [spec]}
    review([("x.json", json.dumps(document).encode())], LINTER)
    named = {**document, "metadata": {"name": "a", "annotations": {NETWORKS: "a"}}}
    review([("x.json", json.dumps(named).encode())], LINTER, complete=True)

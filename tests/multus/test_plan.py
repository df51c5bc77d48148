from __future__ import annotations

import json
from typing import Any

import pytest

from underlay.cni.config import parse_network
from underlay.errors import DecodeFailure, InvalidAnnotation, InvalidConfig, NetworkMissing
from underlay.kube.objects import NetworkAttachmentDefinition, Pod
from underlay.multus import config as configuration
from underlay.multus.networks import ConfigFiles, Networks
from underlay.multus.plan import configured, plan

MACVLAN = {"cniVersion": "0.3.1", "type": "macvlan", "capabilities": {"mac": True, "ips": True}}
NETWORKS = "k8s.v1.cni.cncf.io/networks"
DEFAULT = "v1.multus-cni.io/default-network"


class Definitions:
    """A source that holds networks in memory."""

    def __init__(self, *names: str) -> None:
        self.networks: dict[tuple[str, str], NetworkAttachmentDefinition] = {}
        for each in names:
            self.put(each)

    def put(self, name: str, config: Any = MACVLAN, resource: str = "") -> None:
        namespace, _, bare = name.rpartition("/")
        text = config if isinstance(config, str) or config is None else json.dumps(config)
        made = NetworkAttachmentDefinition(namespace or "default", bare, text, resource)
        self.networks[made.namespace, made.name] = made

    def pod(self, namespace: str, name: str, deadline: float, uid: str = "") -> Pod | None:
        return None

    def known_pod(self, namespace: str, name: str, uid: str) -> Pod | None:
        return None

    def network(self, namespace: str, name: str, deadline: float) -> NetworkAttachmentDefinition | None:
        return self.networks.get((namespace, name))

    def write_status(self, pod: Pod, status: bytes) -> None: ...

    def drop_status(self, namespace: str, name: str, uid: str) -> None: ...

    def published(self) -> list[tuple[str, str]]:
        return []

    def event(self, pod: Pod, kind: str, reason: str, message: str) -> None: ...
    def node_event(self, kind: str, reason: str, message: str) -> None: ...

    def check(self) -> None: ...


@pytest.fixture
def source():
    return Definitions("a", "b", "other/c", "kube-system/extra")


@pytest.fixture
def conf_dir(tmp_path):
    directory = tmp_path / "net.d"
    directory.mkdir()
    (directory / "10-cluster.conflist").write_text(
        json.dumps({"cniVersion": "0.3.1", "name": "cluster-net", "plugins": [{"type": "ptp"}]})
    )
    return directory


@pytest.fixture
def decide(source, conf_dir):
    """``decide(annotations, namespace=…, **keys of the configuration)`` gives the plan."""

    def made(annotations: dict[str, str] | None, namespace: str = "default", verb=plan, **keys: Any) -> Any:
        given = {"cniVersion": "0.3.1", "name": "multus-net", "type": "multus", "clusterNetwork": "cluster-net"} | keys
        config = configuration.parse(json.dumps({k: v for k, v in given.items() if v is not None}).encode())
        nets = Networks(
            source,
            ConfigFiles(lambda *_, **__: None),
            conf_dir=str(conf_dir),
            namespace=config.multus_namespace,
            deadline=0,
        )
        if verb is configured:
            return configured(config, nets)
        pod = None if annotations is None else Pod(namespace, "web", "u", annotations)
        return plan(config, pod, "eth0", nets, lambda each: parse_network(each.conf, name=each.name))

    return made


def nics(made: Any) -> list[tuple[str, str]]:
    return [(each.network, each.ifname) for each in made.attachments]


def test_the_order_is_cluster_network_default_networks_annotation(decide):
    made = decide({NETWORKS: "a,other/c@fast0,b"}, defaultNetworks=["extra"])
    assert nics(made) == [
        ("cluster-net", "eth0"),
        ("kube-system/extra", "net1"),
        ("default/a", "net2"),
        ("other/c", "fast0"),
        ("default/b", "net4"),
    ]
    assert made.notes == ()


def test_without_a_pod_the_configuration_alone_counts(decide):
    assert nics(decide(None, defaultNetworks=["extra"])) == [("cluster-net", "eth0"), ("kube-system/extra", "net1")]


def test_delegates_are_the_cluster_network_and_further_ones(decide):
    delegates = [{"cniVersion": "0.3.1", "name": "one", "type": "ptp"}, {"cniVersion": "0.3.1", "type": "macvlan"}]
    made = decide({NETWORKS: "a"}, clusterNetwork=None, delegates=delegates)
    assert nics(made) == [("one", "eth0"), ("multus-net", "net1"), ("default/a", "net2")]


def test_pods_of_system_namespaces_get_no_default_networks(decide, source):
    source.put("kube-system/b")
    keys = {"defaultNetworks": ["extra"], "systemNamespaces": ["kube-system"]}
    assert nics(decide({NETWORKS: "b"}, "kube-system", **keys)) == [("cluster-net", "eth0"), ("kube-system/b", "net1")]
    assert len(decide({}, "default", **keys).attachments) == 2


def test_what_the_annotation_asks_for_travels_with_the_attachment(decide):
    element = {"name": "a", "mac": "02:aa:bb:cc:dd:01", "ips": ["172.18.8.50/16"], "default-route": ["172.18.0.1"]}
    made = decide({NETWORKS: json.dumps([element | {"cni-args": {"foo": "bar"}}])}).attachments[1]
    assert made.runtime == {"mac": "02:aa:bb:cc:dd:01", "ips": ("172.18.8.50/16",)}
    assert made.cni_args == {"foo": "bar"}
    assert made.default_gateways == ("172.18.0.1",)
    assert made.name == "a"


def test_runtime_config_of_the_call_is_meant_for_the_cluster_network(decide):
    ports = [{"hostPort": 80, "containerPort": 80}]
    made = decide({NETWORKS: "a"}, runtimeConfig={"portMappings": ports}, capabilities={"portMappings": True})
    assert [each.runtime for each in made.attachments] == [{"portMappings": ports}, {}]


def test_the_default_network_annotation_replaces_the_cluster_network(decide):
    made = decide({DEFAULT: "extra", NETWORKS: "a"})
    assert nics(made) == [("kube-system/extra", "eth0"), ("default/a", "net1")]


@pytest.mark.parametrize(
    ("element", "words"),
    [
        ({"name": "a", "surprise": 1}, "'surprise' is no key"),
        (
            {"name": "a", "portMappings": [{"hostPort": 1, "containerPort": 1}]},
            "no plugin declares the capability portM",
        ),
        ({"name": "b", "namespace": "other"}, "nobody knows which device of example.com/vf"),
    ],
)
def test_what_has_no_effect_is_noted(decide, source, element, words):
    source.put("other/b", MACVLAN, "example.com/vf")
    (note,) = decide({NETWORKS: json.dumps([element])}).notes
    assert words in note


@pytest.mark.parametrize(
    ("annotations", "keys", "fault", "words"),
    [
        ({NETWORKS: "nosuch"}, {}, NetworkMissing, "network default/nosuch: there is no NetworkAttachmentDefinition"),
        ({NETWORKS: "a@x0,b@x0"}, {}, InvalidAnnotation, "networks default/a and default/b both ask for .* 'x0'"),
        ({NETWORKS: "a,a@net1"}, {}, InvalidAnnotation, "default/a and default/a both ask .* 'net1'"),
        ({NETWORKS: "a@eth0"}, {}, InvalidAnnotation, "cluster-net and default/a both ask .* 'eth0'"),
        ({NETWORKS: "A"}, {}, InvalidAnnotation, r"networks\[0\] name 'A'"),
        ({DEFAULT: "a,b"}, {}, InvalidAnnotation, "names 2 networks"),
        ({DEFAULT: "extra@eth7"}, {}, InvalidAnnotation, "asks for the interface name 'eth7'"),
        ({DEFAULT: "nosuch"}, {}, NetworkMissing, "kube-system/nosuch"),
        ({}, {"clusterNetwork": "nosuch"}, NetworkMissing, "'nosuch': there is neither .* kube-system nor a file in"),
        ({}, {"clusterNetwork": "/no/such"}, NetworkMissing, "'/no/such': there is neither"),
        ({}, {"defaultNetworks": ["nosuch"]}, NetworkMissing, "'nosuch'"),
        ({}, {"clusterNetwork": None, "delegates": [1]}, InvalidConfig, r'"delegates\[0\]": expected object'),
        (
            {NETWORKS: '[{"name":"a","default-route":["1.2.3.4"]},{"name":"b","default-route":["5.6.7.8"]}]'},
            {},
            InvalidAnnotation,
            "default/a and default/b both ask for the pod's IPv4 default route",
        ),
    ],
)
def test_a_fault_names_the_network_and_the_cause(decide, annotations, keys, fault, words):
    with pytest.raises(fault, match=words):
        decide(annotations, **keys)


@pytest.mark.parametrize(
    ("config", "fault", "words"),
    [
        ("{ not json", DecodeFailure, "network default/a: .*not JSON"),
        ({"cniVersion": "9.9", "type": "macvlan"}, Exception, "network default/a: .*9.9"),
        ({"type": "../macvlan"}, InvalidConfig, "network default/a: .*type"),
        ({"type": "multus", "delegates": []}, InvalidConfig, "network default/a is of type 'multus'"),
        (None, NetworkMissing, "network default/a: its definition has no spec.config, and no file in"),
    ],
)
def test_a_broken_definition_fails_before_anything_is_made(decide, source, config, fault, words):
    source.put("a", config)
    with pytest.raises(fault, match=words):
        decide({NETWORKS: "b,a"})


def test_default_routes_of_both_families_may_go_to_different_networks(decide):
    elements = [{"name": "a", "default-route": ["1.2.3.4"]}, {"name": "b", "default-route": ["fd00::1", "fd00::2"]}]
    made = decide({NETWORKS: json.dumps(elements)})
    assert [each.default_gateways for each in made.attachments] == [(), ("1.2.3.4",), ("fd00::1", "fd00::2")]


ISOLATED = {"namespaceIsolation": True}


@pytest.mark.parametrize(
    ("annotations", "namespace", "keys", "allowed"),
    [
        ({NETWORKS: "other/c"}, "default", ISOLATED, False),
        ({NETWORKS: "other/c"}, "default", {}, True),
        ({NETWORKS: "c"}, "other", ISOLATED, True),
        ({NETWORKS: "default/a"}, "other", ISOLATED, True),
        ({NETWORKS: "default/a"}, "other", ISOLATED | {"globalNamespaces": "kube-system"}, False),
        ({NETWORKS: "other/c"}, "default", ISOLATED | {"globalNamespaces": "other,x"}, True),
        ({DEFAULT: "other/c"}, "default", ISOLATED, False),
        ({DEFAULT: "extra"}, "default", ISOLATED | {"globalNamespaces": "kube-system"}, True),
    ],
)
def test_isolated_namespaces_reach_their_own_and_global_networks(decide, annotations, namespace, keys, allowed):
    if allowed:
        assert decide(annotations, namespace, **keys).attachments
    else:
        with pytest.raises(InvalidAnnotation, match=rf"of namespace {namespace} may use"):
            decide(annotations, namespace, **keys)


def test_a_configured_network_is_a_definition_then_a_file_by_name_then_a_directory_then_a_path(
    decide, source, conf_dir, tmp_path
):
    def found(name: str) -> tuple[str, bytes]:
        attachment = decide(None, clusterNetwork=name).attachments[0]
        return attachment.network, attachment.conf

    by_path = json.dumps({"cniVersion": "1.0.0", "name": "by-path", "type": "ptp"})
    (conf_dir / "20-single.conf").write_text(by_path.replace("by-path", "both"))
    (conf_dir / "30-list.conflist").write_text(json.dumps({"name": "both", "plugins": [{"type": "bridge"}]}))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "b.conf").write_text(by_path)
    (elsewhere / "a.conf").write_text(by_path.replace("by-path", "first"))
    (elsewhere / "0.txt").write_text("no configuration")
    assert found("both")[1].startswith(b'{"name": "both", "plugins"')  # a list goes before a single plugin
    assert found(str(elsewhere))[0] == "first"
    assert found(str(elsewhere / "b.conf"))[0] == "by-path"
    source.put("kube-system/both")
    assert found("both")[0] == "kube-system/both"


def test_a_file_that_changes_is_read_again_and_a_broken_one_is_passed_over(decide, conf_dir):
    path = conf_dir / "20-x.conf"
    path.write_text(json.dumps({"name": "x", "type": "ptp", "mtu": 1}))
    assert b'"mtu": 1}' in decide(None, clusterNetwork="x").attachments[0].conf
    path.with_suffix(".tmp").write_text(json.dumps({"name": "x", "type": "ptp", "mtu": 2}))
    path.with_suffix(".tmp").rename(path)
    assert b'"mtu": 2}' in decide(None, clusterNetwork="x").attachments[0].conf
    (conf_dir / "10-a.conf").write_text("{ not json")
    assert decide(None, clusterNetwork="x").attachments
    with pytest.raises(InvalidConfig, match=r"10-a\.conf: it holds no JSON object"):
        decide(None, clusterNetwork=str(conf_dir / "10-a.conf"))


def test_an_unreadable_file_hinders_only_who_names_it(decide, conf_dir):
    (conf_dir / "00-gone.conflist").symlink_to("nowhere")
    assert decide(None).attachments
    with pytest.raises(NetworkMissing):
        decide(None, clusterNetwork="nosuch")
    with pytest.raises(InvalidConfig, match=r"00-gone\.conflist: it cannot be read: No such file"):
        decide(None, clusterNetwork=str(conf_dir))


def test_a_definition_without_configuration_takes_the_file_of_its_name(decide, source, conf_dir):
    source.put("a", None)
    (conf_dir / "a.conf").write_text(json.dumps({"cniVersion": "0.3.1", "name": "a", "type": "macvlan"}))
    attachment = decide({NETWORKS: "a"}).attachments[1]
    assert (attachment.network, attachment.conf) == ("default/a", (conf_dir / "a.conf").read_bytes())


def test_the_auxiliary_chain_runs_last_from_an_empty_result(decide, conf_dir):
    assert len(decide({NETWORKS: "a"}, auxiliaryCNIChainName="vendor").attachments) == 2
    (conf_dir / "vendor").mkdir()
    assert len(decide({NETWORKS: "a"}, auxiliaryCNIChainName="vendor").attachments) == 2
    (conf_dir / "vendor" / "20-b.conf").write_text('{"type": "b"}')
    (conf_dir / "vendor" / "10-a.conf").write_text('{"type": "a", "key": 1}')
    attachment = decide({NETWORKS: "a"}, auxiliaryCNIChainName="vendor").attachments[2]
    assert (attachment.network, attachment.ifname) == ("vendor", "net2")
    network = parse_network(attachment.conf)
    assert [plugin.type for plugin in network.plugins] == ["a", "b"]
    assert network.plugins[0].prev is not None
    assert b'"key":1' in network.plugins[0].raw


def test_the_configured_networks_are_those_without_any_pod(decide):
    made = decide(None, verb=configured, defaultNetworks=["extra"])
    assert [each.network for each in made] == ["cluster-net", "kube-system/extra"]

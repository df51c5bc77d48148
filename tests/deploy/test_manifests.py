"""What deploy/ applies is of one piece, and fits the code that it runs. Each part has more tests beside its code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from underlay import __version__
from underlay.cli import install
from underlay.cli.main import _parser
from underlay.daemon import config
from underlay.multus import daemon_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from underlay.daemon.config import Settings

DEPLOY = Path(__file__).parents[2] / "deploy"
MANIFESTS = sorted(path for path in DEPLOY.rglob("*.yaml") if path.name != "kustomization.yaml")
KUSTOMIZATIONS = sorted(DEPLOY.rglob("kustomization.yaml"))
IMAGE = f"multus-underlay:{__version__}"

# Paths of the settings that are looked up in the node's root (chroot_dir), and those that an API server replaces.
IN_THE_NODES_ROOT = {"bin_dir", "device_info_dir"}
NOT_READ = {"manifest_dir", "log.file", "kube.kubeconfig"}
WRITTEN = {"state_dir", "run_dir", "log.plugin_dir"}


def documents(path: Path) -> list[Any]:
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


def names(path: Path) -> str:
    return str(path.relative_to(DEPLOY))


WORKLOADS = [
    pytest.param(each, id=f"{names(path)}-{each['kind']}")
    for path in MANIFESTS
    for each in documents(path)
    if "template" in each.get("spec", {})
]
(CONFIG_MAP, DAEMON_SET) = documents(DEPLOY / "daemonset.yaml")
POD = DAEMON_SET["spec"]["template"]["spec"]
(DAEMON,) = POD["containers"]
(INSTALL,) = POD["initContainers"]
UNINSTALL = DEPLOY / "uninstall" / "daemonset.yaml"
(UNINSTALL_SET,) = documents(UNINSTALL)


def containers(workload: Any) -> list[Any]:
    spec = workload["spec"]["template"]["spec"]
    return [*spec.get("initContainers", ()), *spec["containers"]]


def words(container: Any) -> list[str]:
    """The container's call, with an address for what the kubelet puts in."""
    return [each.replace("$(POD_IP)", "10.1.2.3") for each in (*container["command"], *container.get("args", ()))]


def host_paths(spec: Any, container: Any) -> dict[str, tuple[str, bool]]:
    """What is mounted from the node: path in the container to the node's, and whether it can be written."""
    volumes = {each["name"]: each["hostPath"]["path"] for each in spec["volumes"] if "hostPath" in each}
    return {
        each["mountPath"]: (volumes[each["name"]], not each.get("readOnly", False))
        for each in container["volumeMounts"]
        if each["name"] in volumes
    }


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """As the daemon reads them from its ConfigMap, laid elsewhere."""
    for name, content in CONFIG_MAP["data"].items():
        (tmp_path / name).write_text(content.replace("/etc/underlay/", f"{tmp_path}/"))
    (env,) = DAEMON["env"]
    monkeypatch.setenv(env["name"], "n1")
    flag, path = DAEMON["args"]
    assert (flag, Path(path).parent) == ("--config", Path("/etc/underlay"))
    return config.load(str(tmp_path / Path(path).name), {})


def test_what_is_applied_is_everything_once_and_nothing_of_the_uninstall() -> None:
    top, uninstall = (documents(path)[0] for path in KUSTOMIZATIONS)
    applied = [DEPLOY / each for each in top["resources"]]
    assert sorted(applied) == [path for path in MANIFESTS if path.parent.name != "uninstall"]
    assert [DEPLOY / "uninstall" / each for each in uninstall["resources"]] == [UNINSTALL]
    assert top["resources"].index("rbac.yaml") < top["resources"].index("daemonset.yaml")
    kinds = [(each["kind"], each["metadata"]["name"]) for path in MANIFESTS for each in documents(path)]
    assert len(kinds) == len(set(kinds))


@pytest.mark.parametrize("path", KUSTOMIZATIONS, ids=names)
def test_one_line_says_where_the_image_comes_from(path: Path) -> None:
    (image,) = documents(path)[0]["images"]
    assert f"{image['name']}:{image['newTag']}" == IMAGE


@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_workload_is_of_one_piece(workload: Any) -> None:
    template = workload["spec"]["template"]
    assert workload["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert workload["metadata"]["namespace"] == "kube-system"
    volumes = [each["name"] for each in template["spec"].get("volumes", ())]
    mounted = {each["name"] for one in containers(workload) for each in one.get("volumeMounts", ())}
    assert sorted(volumes) == sorted(mounted)
    for container in containers(workload):
        assert container["image"] == IMAGE
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert container["securityContext"]["readOnlyRootFilesystem"] is True


@pytest.mark.parametrize("workload", WORKLOADS)
def test_every_container_is_called_as_its_command_is_written(workload: Any) -> None:
    for container in containers(workload):
        program, *arguments = words(container)
        if program == "sleep":
            continue
        assert program == "underlay"
        _parser(arguments).parse_args(arguments)


def accounts() -> Iterator[tuple[str, str]]:
    for path in MANIFESTS:
        for each in documents(path):
            if each["kind"] == "ServiceAccount":
                yield each["metadata"]["namespace"], each["metadata"]["name"]


@pytest.mark.parametrize("workload", WORKLOADS)
def test_who_speaks_to_the_api_server_has_an_account_and_who_does_not_has_no_token(workload: Any) -> None:
    spec = workload["spec"]["template"]["spec"]
    speaks = "serviceAccountName" in spec and spec.get("automountServiceAccountToken", True)
    if speaks:
        assert (workload["metadata"]["namespace"], spec["serviceAccountName"]) in set(accounts())
    else:
        assert spec["automountServiceAccountToken"] is False


def paths(settings: Settings) -> Iterator[tuple[str, str]]:
    """Every setting that is a path, by its key."""
    for prefix, section in (("", settings), ("log.", settings.log), ("kube.", settings.kube)):
        for key in section.__struct_fields__:
            value = getattr(section, key)
            for one in value if isinstance(value, tuple) else (value,):
                if isinstance(one, str) and one.startswith("/"):
                    yield prefix + key, one


def test_every_directory_that_the_settings_name_is_mounted_from_the_same_place(settings: Settings) -> None:
    mounts = host_paths(POD, DAEMON)
    seen = set()
    for key, path in paths(settings):
        if key in IN_THE_NODES_ROOT | NOT_READ or key in ("chroot_dir", "multus_daemon_config"):
            continue
        inside = [(at, *of) for at, of in mounts.items() if path == at or path.startswith(f"{at}/")]
        assert inside, f"{key}: {path} is not mounted"
        ((at, on_the_node, writable),) = inside
        assert at == on_the_node, f"{key}: the executables and the kubelet know it as {path}"
        assert writable or key not in WRITTEN
        seen.add(key)
    assert seen >= WRITTEN | {"conf_dir", "pod_resources_socket", "device_checkpoint"}


def test_the_nodes_root_is_where_the_settings_say_and_what_is_mounted_later_arrives(settings: Settings) -> None:
    assert host_paths(POD, DAEMON)[settings.chroot_dir] == ("/", True)
    (root,) = (each for each in DAEMON["volumeMounts"] if each["mountPath"] == settings.chroot_dir)
    assert root["mountPropagation"] == "HostToContainer"
    assert (POD["hostNetwork"], POD["hostPID"]) == (True, True)


def test_the_file_of_the_runtime_is_kept_where_the_runtime_reads() -> None:
    theirs = daemon_file.parse(CONFIG_MAP["data"]["daemon-config.json"].encode())
    assert theirs.warnings == ()
    assert theirs.generation.directory == theirs.generation.masters
    assert host_paths(POD, DAEMON)[theirs.generation.directory] == (theirs.generation.directory, True)
    assert not theirs.generation.clean_up, "pods would start with the cluster network alone while the daemon restarts"


def test_the_executables_are_laid_where_the_daemon_and_the_runtime_look(settings: Settings) -> None:
    arguments = words(INSTALL)[1:]
    options = _parser(arguments).parse_args(arguments)
    (bin_dir,) = settings.bin_dir
    assert host_paths(POD, INSTALL) == {str(options.bin_dir): (bin_dir, True)}
    assert options.run_dir == settings.run_dir == install.DEFAULT_RUN_DIR
    assert options.names == list(install.DEFAULT_NAMES)
    assert not options.force


def test_the_probes_ask_the_daemon_and_it_has_the_time_to_end(settings: Settings) -> None:
    host, port = config.split_address(settings.health_address)
    for probe, path in (("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")):
        assert DAEMON[probe]["httpGet"] == {"host": host, "port": port, "path": path}
    assert POD["terminationGracePeriodSeconds"] > settings.stop_deadline
    assert DAEMON_SET["spec"]["updateStrategy"]["rollingUpdate"]["maxSurge"] == 0


def test_the_uninstall_is_given_what_it_takes_away() -> None:
    spec = UNINSTALL_SET["spec"]["template"]["spec"]
    (container,) = spec["initContainers"]
    arguments = words(container)[1:]
    options = _parser(arguments).parse_args(arguments)
    places = {str(options.bin_dir), options.conf_dir, options.state_dir, options.run_dir}
    assert host_paths(spec, container) == {each: (each, True) for each in places}
    installed = {**host_paths(POD, DAEMON), **host_paths(POD, INSTALL)}
    assert {each: installed[each] for each in places} == host_paths(spec, container)


def test_the_networks_of_the_specification_can_be_made() -> None:
    (crd,) = documents(DEPLOY / "crds" / "networkattachmentdefinitions.yaml")
    (version,) = crd["spec"]["versions"]
    assert crd["metadata"]["name"] == f"{crd['spec']['names']['plural']}.{crd['spec']['group']}"
    roles = json.dumps(documents(DEPLOY / "rbac.yaml"))
    assert crd["spec"]["names"]["plural"] in roles
    assert version["name"] == "v1"
    assert version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["config"]["type"] == "string"

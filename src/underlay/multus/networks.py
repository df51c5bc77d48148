"""From the name of a network to its CNI configuration: NetworkAttachmentDefinitions and the files of a directory.

    a pod names       namespace/name  ─▶ definition ─▶ spec.config, or else the file of confDir with that "name" inside
    the configuration names a network ─▶ 1 definition in multusNamespace   2 "name" inside a file of confDir
                                         3 a directory: its first file     4 the absolute path of a file

Files are read again only when their stat differs. Budget: a look-up in a directory of 5 files 20 us.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from underlay.cni.decoding import FAULTS
from underlay.errors import InvalidConfig, IOFailure, NetworkMissing
from underlay.kube.objects import is_label

if TYPE_CHECKING:
    from collections.abc import Sequence

    from underlay.kube.objects import NetworkAttachmentDefinition
    from underlay.kube.source import Log

_LISTS: Final = (".conflist",)
_SINGLE: Final = (".conf", ".json")


class Network(msgspec.Struct, frozen=True):
    """A network as found.

    ``shown`` is its name in network-status and messages: "namespace/name" of a definition, the "name" inside a file
    otherwise; ``conf`` the CNI JSON's bytes, ``name`` what stands in for a missing "name"; ``resource`` the device
    plugin's resource it is tied to, or empty.
    """

    shown: str
    conf: bytes
    name: str
    resource: str = ""


class _Named(msgspec.Struct):
    name: str | None = None


_NAMED: Final = msgspec.json.Decoder(_Named)


def own_name(conf: bytes) -> str:
    """The "name" inside a CNI configuration, or "". Raises one of decoding.FAULTS where it is no JSON object."""
    return _NAMED.decode(conf).name or ""


class _File(msgspec.Struct, frozen=True):
    signature: tuple[int, int, int]
    conf: bytes
    name: str
    fault: str = ""


class ConfigFiles:
    """CNI configurations in files, kept as long as they do not change. Thread-safe: an entry is replaced whole."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._files: dict[str, _File] = {}

    def named(self, directory: str, name: str) -> Network | None:
        """The configuration in ``directory`` whose "name" is ``name``; lists before single plugins."""
        for path in _listed(directory, _LISTS) + _listed(directory, _SINGLE):
            file = self._read(path)
            if not file.fault and file.name == name:
                return Network(name, file.conf, name)
        return None

    def first(self, directory: str) -> Network | None:
        """The configuration in the first file of ``directory`` by name."""
        paths = _listed(directory, _LISTS + _SINGLE)
        return self.at(paths[0]) if paths else None

    def at(self, path: str) -> Network:
        """The configuration in one file. Raises InvalidConfig, naming what is wrong with it."""
        file = self._read(path)
        if file.fault:
            raise InvalidConfig(f"{path}: {file.fault}", hint="Correct the file, or name another network.")
        name = file.name or os.path.basename(path)
        return Network(name, file.conf, name)

    def all(self, directory: str) -> list[Network]:
        """Every single plugin's configuration in ``directory``, by file name; none where it does not exist."""
        return [self.at(path) for path in _listed(directory, _SINGLE)]

    def _read(self, path: str) -> _File:
        """The file, read again where it differs; a broken one is logged once for each fault."""
        known = self._files.get(path)
        signature, conf, name, fault = (0, 0, 0), b"", "", ""
        try:
            stat = os.stat(path)
            signature = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if known is not None and known.signature == signature:
                return known
            with open(path, "rb", buffering=0) as opened:
                conf = opened.read()
            name = own_name(conf)
        except OSError as error:
            signature, fault = (0, 0, 0), f"it cannot be read: {error.strerror}"
        except FAULTS as error:
            fault = f"it holds no JSON object: {error}"
        if fault and (known is None or known.fault != fault):
            self._log("warn", "CNI configuration is broken", path=path, cause=fault)
        self._files[path] = file = _File(signature, conf, name, fault)
        return file


def _listed(directory: str, endings: tuple[str, ...]) -> list[str]:
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as fault:
        raise IOFailure(f"the directory {directory} cannot be listed: {fault.strerror}") from fault
    return [os.path.join(directory, name) for name in sorted(names) if name.endswith(endings)]


class Definitions(Protocol):
    """The part of a source that networks come from."""

    def network(self, namespace: str, name: str, deadline: float) -> NetworkAttachmentDefinition | None:
        """As :meth:`underlay.kube.source.Source.network`."""


class Networks:
    """Networks by name, for one request: a source of definitions, a directory of files, a deadline."""

    def __init__(
        self, source: Definitions, files: ConfigFiles, *, conf_dir: str, namespace: str, deadline: float
    ) -> None:
        self._source = source
        self._files = files
        self._conf_dir = conf_dir
        self._namespace = namespace
        self._deadline = deadline

    def definition(self, namespace: str, name: str) -> Network:
        """The network of a NetworkAttachmentDefinition. Raises NetworkMissing."""
        found = self._source.network(namespace, name, self._deadline)
        if found is None:
            raise NetworkMissing(f"network {namespace}/{name}: there is no NetworkAttachmentDefinition of that name")
        return self._of(found)

    def configured(self, name: str) -> Network:
        """The network that the configuration names. Raises NetworkMissing, naming every place that was looked at."""
        if is_label(name):
            found = self._source.network(self._namespace, name, self._deadline)
            if found is not None:
                return self._of(found)
        network = self._files.named(self._conf_dir, name)
        if network is None and os.path.isabs(name):
            network = self._files.first(name) if os.path.isdir(name) else self._at(name)
        if network is None:
            raise NetworkMissing(
                f"network {name!r}: there is neither a NetworkAttachmentDefinition of that name in namespace "
                f'{self._namespace} nor a file in {self._conf_dir} with that "name" inside',
                hint='Create one of them, or correct "clusterNetwork" and "defaultNetworks".',
            )
        return network

    def chain(self, cluster_network: str, chain: str) -> Sequence[Network]:
        """The plugins' configurations of the auxiliary chain, in a directory beside the cluster network's file."""
        base = os.path.dirname(cluster_network) if os.path.isabs(cluster_network) else self._conf_dir
        return self._files.all(os.path.join(base, chain))

    def _at(self, path: str) -> Network | None:
        return self._files.at(path) if os.path.exists(path) else None

    def _of(self, found: NetworkAttachmentDefinition) -> Network:
        shown = f"{found.namespace}/{found.name}"
        if found.config is not None:
            return Network(shown, found.config.encode(), found.name, found.resource_name)
        file = self._files.named(self._conf_dir, found.name)
        if file is None:
            raise NetworkMissing(
                f'network {shown}: its definition has no spec.config, and no file in {self._conf_dir} has the "name" '
                f"{found.name!r} inside",
                hint="Set spec.config of the NetworkAttachmentDefinition.",
            )
        return Network(shown, file.conf, found.name, found.resource_name)

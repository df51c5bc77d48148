"""Pods and networks from a directory of Kubernetes manifests, without a cluster.

    DIR/networks.yaml                       NetworkAttachmentDefinitions, any number a file, sub-directories too
    DIR/pods/web.yaml                       a Pod, read for its annotations
    DIR/pods/default.web.network-status.json  what was attached, written by us beside the pod's manifest

Every lookup sees the files as they are when it is called: the kernel says whether anything below the directory has
changed (inotify), and then only files whose size, times or inode differ are read again. Where inotify is not to be
had, every lookup looks at every file's stat. Names that begin with "." are passed over, and so are directories that
are symbolic links (a ConfigMap's files are links to "..data/…", which is one).

A file that cannot be read or parsed is logged, and none of its objects is in force, not the ones of its last good
state either. While there is one, a lookup that finds nothing raises TryAgain and names it, since the object may well
be in there. Of an object defined twice the first file by path counts, and both are logged.

Budget: a lookup 5 us; after a change 100 us plus the parsing of what changed, with 10 files.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, field
from stat import S_ISREG
from typing import TYPE_CHECKING

from underlay.errors import NotAvailable, StateUnwritable, TryAgain
from underlay.kube import manifest
from underlay.kube.inotify import Watch
from underlay.kube.status_files import SUFFIX, StatusFiles

if TYPE_CHECKING:
    from underlay.kube.objects import NetworkAttachmentDefinition, Pod
    from underlay.kube.source import EventType, Log
    from underlay.kube.surrounding import Surrounding

_UNSETTLED_NS = 20_000_000
"""File times move in steps of a timer tick (up to 10 ms): a file younger than this may change again unseen."""

_MEND = "Mend the files named above; they are read again by themselves."

_Signature = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class _File:
    """A file as it was last read. ``settled``: its signature alone will show the next change."""

    signature: _Signature
    content: int
    settled: bool
    objects: manifest.Objects
    fault: str = ""


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """All files together; each object with the path it comes from."""

    pods: dict[tuple[str, str], tuple[Pod, str]] = field(default_factory=dict)
    networks: dict[tuple[str, str], tuple[NetworkAttachmentDefinition, str]] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    duplicates: frozenset[str] = frozenset()
    around: tuple[tuple[Surrounding, ...], tuple[str, ...]] = ((), ())


def _ignored(name: str) -> bool:
    return name.startswith(".") or name.endswith(SUFFIX)


def _signature(stat: os.stat_result) -> _Signature:
    return stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino


class Manifests:
    """A :class:`~underlay.kube.source.Source` over a directory of manifests.

    ``watch`` False: do not ask the kernel for changes but look at every file each time, for a directory that other
    hosts write to.
    """

    def __init__(self, directory: str, log: Log, *, watch: bool = True) -> None:
        self.directory = directory
        self._log = log
        self._lock = threading.Lock()
        self._files: dict[str, _File] = {}
        self._snapshot = _Snapshot()
        self._directories: tuple[str, ...] = (directory,)
        self._links: dict[str, _Signature] = {}
        self._watch: Watch | None = None
        self._stale = True
        self._looked = 0
        self._statuses = StatusFiles(directory)
        try:
            self._watch = Watch(_ignored) if watch else None
        except OSError as fault:
            log("warn", "manifests are watched by looking at every file", directory=directory, cause=str(fault))

    def pod(self, namespace: str, name: str, deadline: float, uid: str = "") -> Pod | None:
        """The pod of that name, or None; TryAgain where a broken file may hold it."""
        now = self._current()
        found = now.pods.get((namespace, name))
        if found is None and now.faults:
            raise _unknown("pod", namespace, name, now.faults)
        return found[0] if found else None

    def known_pod(self, namespace: str, name: str, uid: str) -> Pod | None:
        """The pod of that name, where its UID is none or that one."""
        found = self._current().pods.get((namespace, name))
        return found[0] if found and (not uid or found[0].uid in ("", uid)) else None

    def network(self, namespace: str, name: str, deadline: float) -> NetworkAttachmentDefinition | None:
        """The NetworkAttachmentDefinition of that name, or None; TryAgain where a broken file may hold it."""
        now = self._current()
        found = now.networks.get((namespace, name))
        if found is None and now.faults:
            raise _unknown("network", namespace, name, now.faults)
        return found[0] if found else None

    def pods(self) -> list[Pod]:
        """Every pod that there is a manifest of."""
        return [pod for pod, _ in self._current().pods.values()]

    def surrounding(self) -> tuple[tuple[Surrounding, ...], tuple[str, ...]]:
        """What address pools ask for, by path, and the files that cannot be read. Without news: the same object."""
        return self._current().around

    def write_status(self, pod: Pod, status: bytes) -> None:
        """Write the pod's network-status beside its manifest, by temporary file and rename. StateUnwritable."""
        found = self._snapshot.pods.get((pod.namespace, pod.name))
        directory = os.path.dirname(found[1]) if found else self.directory
        try:
            self._statuses.write(directory, f"{pod.namespace}.{pod.name}", status)
        except OSError as fault:
            whose = f"the network-status of pod {pod.namespace}/{pod.name}"
            raise StateUnwritable(f"{whose} cannot be written to {directory}: {fault.strerror}") from fault

    def drop_status(self, namespace: str, name: str, uid: str) -> None:
        """Remove the pod's network-status file, wherever below the directory its manifest was."""
        self._statuses.drop(self._directories, f"{namespace}.{name}")

    def published(self) -> list[tuple[str, str]]:
        """Namespace and name of every pod that has a status file."""
        return self._statuses.listed(self._directories)

    def event(self, pod: Pod, kind: EventType, reason: str, message: str) -> None:
        """A line of the log: files have nobody who reads Events."""
        level = "info" if kind == "Normal" else "warn"
        self._log(level, "event", pod=f"{pod.namespace}/{pod.name}", reason=reason, message=message)

    def node_event(self, kind: EventType, reason: str, message: str) -> None:
        """A line of the log."""
        self._log("info" if kind == "Normal" else "warn", "event", reason=reason, message=message)

    def check(self) -> None:
        """Raise NotAvailable where a file is broken or the directory cannot be read."""
        faults = self._current().faults
        if faults:
            raise NotAvailable("manifests cannot be read: " + "; ".join(faults), hint=_MEND)

    def close(self) -> None:
        """Give the watch back."""
        self._statuses.close()
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _current(self) -> _Snapshot:
        called = time.monotonic_ns()
        with self._lock:
            if self._looked > called:  # another thread began to look after this call was made: what it saw will do
                return self._snapshot
            self._looked = time.monotonic_ns()
            if self._stale or self._watch is None or self._watch.changed() or self._relinked():
                self._stale = True  # a scan that breaks off is repeated
                self._scan()
            return self._snapshot

    def _relinked(self) -> bool:
        """Whether a symbolic link's target differs: it lies elsewhere, so the watch does not see it."""
        for path, before in self._links.items():
            try:
                if _signature(os.stat(path)) != before:
                    return True
            except OSError:
                return True
        return False

    def _scan(self) -> None:
        """Look at every file, read those that differ, put the snapshot together anew where any did."""
        unseen = self._watch is None
        found: list[os.DirEntry[str]] = []
        faults: list[str] = []
        directories = [self.directory]
        for directory in directories:  # grows while it is walked
            unseen = not self._follow(directory) or unseen
            entries = _list(directory, faults)
            directories += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
            found += [entry for entry in entries if entry.name.endswith(manifest.ENDINGS)]
        files = {entry.path: self._read(entry) for entry in found if not entry.is_dir(follow_symlinks=False)}
        self._links = {entry.path: files[entry.path].signature for entry in found if entry.is_symlink()}
        self._directories = tuple(directories)
        changed = files != self._files or faults or self._snapshot.faults
        self._files = files
        if changed:
            self._join(faults)
        self._stale = unseen

    def _follow(self, directory: str) -> bool:
        """Whether the watch tells of changes in the directory. Called before it is listed, so that none is missed."""
        if self._watch is None:
            return False
        try:
            self._watch.add(directory)
        except OSError:  # gone, or no watch left: it is looked at again next time
            return False
        return True

    def _read(self, entry: os.DirEntry[str]) -> _File:
        """The file, parsed again only where its content differs."""
        known = self._files.get(entry.path)
        try:
            stat = entry.stat()
            signature = _signature(stat)
            if known is not None and known.settled and known.signature == signature:
                return known
            settled = time.time_ns() - max(signature[:2]) > _UNSETTLED_NS
            raw = _content(entry.path, stat)
        except OSError as fault:
            cause = fault.strerror or str(fault)
            self._broken(entry.path, known, cause)
            return _File((0, 0, 0, 0), 0, settled=False, objects=manifest.Objects(), fault=cause)
        content = hash(raw)
        if known is not None and known.content == content and known.signature[2] == signature[2]:
            return _File(signature, content, settled, known.objects, known.fault)
        try:
            objects = manifest.parse(entry.name, raw)
        except manifest.ManifestError as fault:
            self._broken(entry.path, known, str(fault))
            return _File(signature, content, settled, manifest.Objects(), str(fault))
        if known is not None and known.fault:
            self._log("info", "manifest is in force again", path=entry.path)
        return _File(signature, content, settled, objects)

    def _broken(self, path: str, known: _File | None, cause: str) -> None:
        """Say that a file is broken, once for each cause."""
        if known is None or known.fault != cause:
            lost = len(known.objects.pods) + len(known.objects.networks) if known else 0
            event = "manifest is broken, none of its objects is in force"
            self._log("error", event, path=path, cause=cause, objects_lost=lost)

    def _join(self, faults: list[str]) -> None:
        """All files' objects in one snapshot. Paths in order, so that of duplicates the same one counts every time."""
        pods: dict[tuple[str, str], tuple[Pod, str]] = {}
        networks: dict[tuple[str, str], tuple[NetworkAttachmentDefinition, str]] = {}
        duplicates: set[str] = set()
        for fault in faults:
            if fault not in self._snapshot.faults:
                self._log("error", "manifest directory cannot be read", cause=fault)
        for path in sorted(self._files):
            file = self._files[path]
            if file.fault:
                faults.append(f"{path}: {file.fault}")
            for pod in file.objects.pods:
                first = pods.setdefault((pod.namespace, pod.name), (pod, path))
                if first[0] is not pod:
                    duplicates.add(f"pod {pod.namespace}/{pod.name}: {first[1]} counts, {path} does not")
            for net in file.objects.networks:
                earlier = networks.setdefault((net.namespace, net.name), (net, path))
                if earlier[0] is not net:
                    duplicates.add(f"network {net.namespace}/{net.name}: {earlier[1]} counts, {path} does not")
        found = [(one, path) for path in sorted(self._files) for one in self._files[path].objects.around]
        around = _unique(found, duplicates)
        for twice in sorted(duplicates - self._snapshot.duplicates):
            self._log("warn", "object is defined twice", object=twice)
        now = (around, tuple(faults))
        self._snapshot = _Snapshot(
            pods,
            networks,
            tuple(faults),
            frozenset(duplicates),
            self._snapshot.around if now == self._snapshot.around else now,
        )


def _unique(found: list[tuple[Surrounding, str]], duplicates: set[str]) -> tuple[Surrounding, ...]:
    """Each object once: of two of one kind and name the first by path counts."""
    first: dict[tuple[str, str, str], tuple[Surrounding, str]] = {}
    for one, path in found:
        kind, namespace = type(one).__name__, getattr(one, "namespace", "")
        known = first.setdefault((kind, namespace, one.name), (one, path))
        if known[0] is not one:
            duplicates.add(f"{kind} {one.name}: {known[1]} counts, {path} does not")
    return tuple(one for one, _ in first.values())


def _unknown(kind: str, namespace: str, name: str, faults: tuple[str, ...]) -> TryAgain:
    return TryAgain(
        f"{kind} {namespace}/{name} is in no manifest that can be read, and {len(faults)} cannot be read: {faults[0]}",
        hint=_MEND,
    )


def _list(directory: str, faults: list[str]) -> list[os.DirEntry[str]]:
    """The entries of a directory that count."""
    try:
        with os.scandir(directory) as entries:
            return [entry for entry in entries if not _ignored(entry.name)]
    except OSError as fault:
        faults.append(f"{directory}: {fault.strerror}")
        return []


def _content(path: str, stat: os.stat_result) -> bytes:
    if not S_ISREG(stat.st_mode):  # to open a pipe would wait for its writer
        raise OSError(0, "not a regular file")
    with open(path, "rb", buffering=0) as file:
        return file.read()

"""The device plugin's one loop: sockets, links, the kubelet's directory, and the clock.

    links change ────┐
    every interval ──┴▶ look at the devices ─▶ ListAndWatch, files          a socket for each resource ◀── the kubelet
    directory changes ▶ our sockets still there? another kubelet.sock? ─▶ Register

Budget: a look at 64 virtual functions 25 ms, at most two a second; 26 MiB.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import selectors
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from underlay.device_plugin import api
from underlay.device_plugin.info_files import InfoFiles, clean_cdi
from underlay.device_plugin.inventory import Inventory
from underlay.device_plugin.registrar import Registrar
from underlay.device_plugin.service import Service
from underlay.errors import IOFailure, KernelError
from underlay.kube import device_info
from underlay.kube.grpc_server import Server
from underlay.kube.inotify import Watch
from underlay.net import carrier
from underlay.net.pci import ROOT, Pci

if TYPE_CHECKING:
    from underlay.device_plugin.followed import Followed
    from underlay.device_plugin.selection import Resource
    from underlay.kube.source import Log
    from underlay.net.netns import Namespace

DIRECTORY: Final = "/var/lib/kubelet/device-plugins"
_LOOKS: Final = 0.5  # seconds between looks, however many links change
_TICK: Final = 1.0  # seconds; the kubelet's directory is not watched where no inotify instance is left
_NAME_BYTES: Final = 48  # sockaddr_un holds 108 bytes, directory included


@dataclass(frozen=True, slots=True)
class Settings:
    """Where things are. ``cdi_dir`` "": no CDI. ``interval`` seconds pass between looks when no link changes."""

    plugin_dir: str = DIRECTORY
    device_info_dir: str = device_info.DIRECTORY
    cdi_dir: str = ""
    sysfs: str = ROOT
    interval: float = 10.0


@dataclass(frozen=True, slots=True)
class _Served:
    service: Service
    server: Server
    endpoint: str


class Plugin:
    """Serves the resources of ``followed``. No capability is needed.

    ``host`` is the node's network namespace, in which the thread is that makes this.
    """

    def __init__(self, followed: Followed, settings: Settings, *, host: Namespace, log: Log) -> None:
        """Raises KernelError, and IOFailure where the kubelet's directory is not there."""
        if not os.path.isdir(settings.plugin_dir):
            hint = "The kubelet makes it; correct --plugin-dir, or in a container mount it."
            raise IOFailure(f"there is no directory {settings.plugin_dir}", hint=hint)
        resources = followed.resources
        self._followed = followed
        self._settings = settings
        self._log = log
        self._lock = _locked(settings.plugin_dir)
        pci = Pci(settings.sysfs)
        self._inventory = Inventory(pci, host, resources)
        self._selector = selectors.DefaultSelector()
        self._awake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._news = carrier.News()
        self._watch = self._watched()
        self._registrar = Registrar(settings.plugin_dir, log, self._wake)
        self._served = [self._made(each, pci) for each in resources]
        self._stopping = False
        self._deaf = False
        self._looked = 0.0
        self._look_at = 0.0
        self._selector.register(self._awake, selectors.EVENT_READ, self._woken)
        self._selector.register(self._news, selectors.EVENT_READ, self._links_changed)
        if self._watch is not None:
            self._selector.register(self._watch, selectors.EVENT_READ, self._directory_changed)
        if settings.cdi_dir:
            clean_cdi(settings.cdi_dir, resources)

    def serve(self) -> bool:
        """Until :meth:`stop`, or the configuration has changed; whether it is the latter."""
        self._log("info", "ready", resources=[each.service.resource.name for each in self._served])
        while not self._stopping:
            now = time.monotonic()
            if now >= self._look_at:
                if self._followed.changed():
                    return not self._stopping
                self._look()
            for each in self._served:
                self._tend(each, now)
            for key, events in self._selector.select(max(0.0, min(self._look_at - time.monotonic(), _TICK))):
                key.data(events)
        return False

    def stop(self) -> None:
        """End :meth:`serve`; from any thread, or a signal's handler."""
        self._stopping = True
        self._wake()

    def close(self) -> None:
        """Take the sockets away: the kubelet hands nothing out any more. Files stay but for resources that are gone."""
        lasting = {each.name for each in self._followed.resources}
        for each in self._served:
            each.server.close()
            if each.service.resource.name not in lasting:
                each.service.update([])
        self._registrar.close(1.0)
        self._news.close()
        if self._watch is not None:
            self._watch.close()
        awake, self._awake = self._awake, -1  # in this order: a signal may come between
        os.close(awake)
        self._selector.close()
        os.close(self._lock)

    def _made(self, resource: Resource, pci: Pci) -> _Served:
        settings = self._settings
        files = InfoFiles(resource, pci, settings.device_info_dir, settings.cdi_dir)
        service = Service(resource, pci, files, self._log, self._look)
        endpoint = endpoint_name(resource)
        path = os.path.join(settings.plugin_dir, endpoint)
        feeds = {api.WATCH: service.listed()}
        server = Server(path, self._selector, calls=service.calls(), feeds=feeds, log=self._log)
        return _Served(service, server, endpoint)

    def _watched(self) -> Watch | None:
        try:
            return Watch(ignore=lambda _name: False)
        except OSError as error:
            self._log("warn", "the kubelet's directory is not watched, but looked at", cause=error.strerror)
            return None

    def _look(self) -> None:
        """Bring all devices up to date, and tell the kubelet what has changed."""
        now = time.monotonic()
        self._looked, self._look_at = now, now + self._settings.interval
        try:
            found = self._inventory.look(now)
        except KernelError as error:
            self._log("warn", "cannot look at the devices", cause=error.message)
            return
        for each in self._served:
            each.service.update(found[each.service.resource.name])
            each.server.tell(api.WATCH, each.service.listed())

    def _tend(self, served: _Served, now: float) -> None:
        """Socket and registration of one resource: the kubelet removes every socket when it starts."""
        resource = served.service.resource.name
        if not served.server.reachable:
            if not self._listens(served):
                return
            self._registrar.again(resource)
        self._registrar.tend(resource, served.endpoint, served.server.listeners(api.WATCH), now)

    def _listens(self, served: _Served) -> bool:
        """Whether the resource has a socket again."""
        if self._watch is not None:
            with contextlib.suppress(OSError):  # the directory is looked at besides
                self._watch.add(self._settings.plugin_dir)
        try:
            served.server.listen()
        except OSError as error:
            if not self._deaf:
                self._log("warn", "cannot listen", socket=served.server.path, cause=error.strerror)
            self._deaf = True
            return False
        self._deaf = False
        return True

    def _links_changed(self, _events: int) -> None:
        with contextlib.suppress(KernelError):  # looking tells what is wrong
            self._news.read()
        self._look_at = min(self._look_at, self._looked + _LOOKS)

    def _directory_changed(self, _events: int) -> None:
        assert self._watch is not None
        self._watch.changed()

    def _wake(self) -> None:
        if self._awake >= 0:
            os.eventfd_write(self._awake, 1)

    def _woken(self, _events: int) -> None:
        os.eventfd_read(self._awake)


def endpoint_name(resource: Resource) -> str:
    """The name of a resource's socket in the kubelet's directory; no other resource has it."""
    name = f"{resource.prefix}_{resource.short}"
    if len(name) > _NAME_BYTES:
        name = hashlib.sha256(name.encode()).hexdigest()[:32]
    return f"{name}.sock"


def _locked(directory: str) -> int:
    """The directory, locked until it is closed: two processes would take each other's sockets away for ever."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise IOFailure(
            f"another device plugin of this kind serves {directory}", hint="Stop it first; one serves all resources."
        ) from error
    return fd

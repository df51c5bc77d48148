"""The configuration that the container runtime finds: the cluster network's own, wrapped into a call of multus.

    /etc/cni/net.d/10-flannel.conflist   first by name, laid by the cluster network's own installer
    /etc/cni/net.d/00-multus.conf        {"type": "multus", "clusterNetwork": ".../10-flannel.conflist",
                                          "cniVersion" and "capabilities" of that network}

The runtime takes the first file by name, so for as long as 00-multus.conf is there no pod starts without its networks;
it is therefore never taken away while there is nothing better: a network's file that is broken or gone leaves it as
it was. It is written whole or not at all (temporary file, fsync, rename, fsync).

What calls multus itself is never wrapped, whatever its name. Two daemons do not fight over one directory: the first
holds a lock on it, the second waits.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from underlay.cni.config import parse_network
from underlay.errors import InvalidConfig, IOFailure, UnderlayError

if TYPE_CHECKING:
    from collections.abc import Callable

    from underlay.cni.config import NetworkConfig
    from underlay.kube.source import Log
    from underlay.multus.daemon_file import Generation
    from underlay.multus.laid import Laid

FILE: Final = "00-multus.conf"
NETWORK: Final = "multus-cni-network"
_TYPES: Final = frozenset({"multus", "multus-shim"})
_ENDINGS: Final = (".conf", ".conflist", ".json")
_SETTLED: Final = 1.0  # seconds after which a file that is broken is no longer being written
_LOCKED: Final = 5.0  # seconds between looks whether the other daemon is gone; a lock's end is no event
_CALM: Final = 60.0  # seconds after which a file that was taken away is put back at once again
_LONGEST_PAUSE: Final = 60.0


@dataclass(frozen=True, slots=True)
class _Master:
    """The cluster network as found: its file and what of it goes to the top."""

    path: str
    name: str
    version: str
    capabilities: tuple[str, ...]


class Autoconf:
    """Keeps one file in step. Used by one thread.

    ``notify(reason, message)`` hears what an operator should see, in the log and as an Event: reason is a CamelCase
    word. ``laid`` is where `underlay uninstall` looks up which file is ours.
    """

    def __init__(
        self,
        generation: Generation,
        log: Log,
        *,
        laid: Laid | None = None,
        notify: Callable[[str, str], None] = lambda _reason, _message: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._generation = generation
        self._log = log
        self._laid = laid
        self._notify = notify
        self._clock = clock
        self._lock = -1
        self._written = b""
        self._told = ""
        self._broken: tuple[str, float] = ("", 0.0)
        self._put_back_at = -_CALM
        self._pause = 0.0
        self.directories = tuple(dict.fromkeys((generation.directory, generation.masters)))
        self.path = os.path.join(generation.directory, FILE)
        if generation.copied:
            self.path = os.path.join(generation.directory, os.path.basename(generation.copied))
            self.directories = tuple(dict.fromkeys((generation.directory, os.path.dirname(generation.copied))))

    def look(self) -> float | None:
        """Bring the file into step with what is there now.

        Returns after how many seconds to look again even if nothing changes, None for never.
        """
        try:
            if not self._locked():
                self._tell("warn", f"another daemon keeps {self.path}")
                return _LOCKED
            wanted = self._copy() if self._generation.copied else self._wrapped()
            pause = None if wanted is None else self._bring(wanted)
        except (UnderlayError, OSError) as error:
            return self._not_now(error)
        self._broken = ("", 0.0)
        if wanted is None:
            missing = "no cluster network" if not self._written else "the cluster network's file is gone"
            self._tell("warn" if self._written else "info", f"{missing}: waiting for one in {self._generation.masters}")
        return pause

    def close(self) -> None:
        """On a clean stop: take the file away if that is wanted, and give the directory free."""
        if self._lock < 0:
            return
        if self._generation.clean_up and self._written:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
            self._log("info", "multus configuration removed", path=self.path)
        os.close(self._lock)
        self._lock = -1

    # -- what is wanted ----------------------------------------------------------------------------------------------

    def _copy(self) -> bytes:
        with open(self._generation.copied, "rb") as file:
            raw = file.read()
        _parsed(self._generation.copied, raw, "")
        return raw

    def _wrapped(self) -> bytes | None:
        master = self._master()
        if master is None:
            return None
        wrapped: dict[str, object] = {
            "cniVersion": master.version,
            "name": master.name if self._generation.own_name else NETWORK,
            "type": "multus",
            "clusterNetwork": master.path,
        }
        if master.capabilities:
            wrapped["capabilities"] = dict.fromkeys(master.capabilities, True)
        return msgspec.json.format(msgspec.json.encode(wrapped), indent=2) + b"\n"

    def _master(self) -> _Master | None:
        """The network to wrap; None where there is none. Raises UnderlayError for one that is broken."""
        names = [self._generation.master] if self._generation.master else _listed(self._generation.masters)
        for name in names:
            path = os.path.join(self._generation.masters, name)
            try:
                with open(path, "rb") as file:
                    raw = file.read()
            except FileNotFoundError:
                continue
            network = _parsed(path, raw, self._generation.version)
            if not all(plugin.type for plugin in network.plugins):
                raise InvalidConfig(f'{path}: "type" is missing')
            if any(plugin.type in _TYPES for plugin in network.plugins):
                continue
            declared = (key for plugin in network.plugins for key, on in plugin.capabilities.items() if on)
            capabilities = tuple(sorted({*declared, *self._generation.capabilities}))
            return _Master(path, network.name, network.version, capabilities)
        return None

    # -- what is done ------------------------------------------------------------------------------------------------

    def _locked(self) -> bool:
        """Whether the directory is ours. The lock lies on the directory itself: no further file, and none is left."""
        if self._lock >= 0 and os.fstat(self._lock).st_nlink:
            return True
        if self._lock >= 0:  # the directory was removed; one of the same name is another
            os.close(self._lock)
            self._lock = -1
        os.makedirs(self._generation.directory, 0o755, exist_ok=True)
        lock = os.open(self._generation.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return False
        self._lock = lock
        return True

    def _bring(self, wanted: bytes) -> float | None:
        """Write the file unless it is as wanted; one that others took away or changed is put back, ever less eagerly:
        a program that removes it each time must not keep the node busy.
        """
        there = self._there()
        if there == wanted:
            self._note(wanted)
            self._written = wanted
            return None
        lost = self._written if there != self._written else b""
        if lost:
            now = self._clock()
            if now - self._put_back_at >= _CALM + self._pause:
                self._pause = 0.0
            if (left := self._put_back_at + self._pause - now) > 0:
                return left
            self._put_back_at, self._pause = now, min(_LONGEST_PAUSE, max(1.0, self._pause * 2))
        self._note(wanted)
        self._write(wanted)
        self._written, self._told = wanted, ""
        if lost:
            self._put_back(changed=there is not None)
        else:
            self._log("info", "multus configuration written", path=self.path, cluster_network=_cluster(wanted))
        return None

    def _put_back(self, *, changed: bool) -> None:
        what = "changed" if changed else "taken away"
        message = (
            f"{self.path} was {what} by another program and is put back; where the cluster network's installer removes "
            'other configurations, switch that off (Cilium: "cni-exclusive: false")'
        )
        self._notify("MultusConfigRestored", message)

    def _note(self, content: bytes) -> None:
        if self._laid is not None and content != self._written:
            self._laid.note(self.path, content)

    def _there(self) -> bytes | None:
        try:
            with open(self.path, "rb") as file:
                return file.read()
        except OSError:
            return None

    def _write(self, content: bytes) -> None:
        """The temporary file's name ends as none that a runtime reads; 0600, since it may hold a copied secret."""
        temporary = os.path.join(self._generation.directory, f".{os.path.basename(self.path)}.tmp")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        with open(temporary, "xb", opener=_private) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, self.path)
        os.fsync(self._lock)

    def _not_now(self, error: UnderlayError | OSError) -> float | None:
        """Leave the file as it is; a fault that is still there after a moment is logged, once."""
        fault = error if isinstance(error, UnderlayError) else IOFailure(str(error))
        now = self._clock()
        if fault.message != self._broken[0]:
            self._broken = (fault.message, now)
            return _SETTLED
        left = self._broken[1] + _SETTLED - now
        if left > 0:
            return left
        self._tell("error", f"the cluster network cannot be wrapped, {self.path} stays as it is: {fault.message}")
        return _LOCKED if isinstance(error, OSError) else None  # of a disk that has space again no event tells

    def _tell(self, level: str, event: str) -> None:
        if event != self._told:
            self._told = event
            self._log(level, event)


def _listed(directory: str) -> list[str]:
    """Names that a runtime would read, in its order."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    return sorted(name for name in names if name.endswith(_ENDINGS) and not name.startswith((".", "00-multus")))


def _parsed(path: str, raw: bytes, version: str) -> NetworkConfig:
    """A network's file. Raises InvalidConfig naming it."""
    try:
        return parse_network(raw, name=os.path.splitext(os.path.basename(path))[0], version=version)
    except UnderlayError as error:
        raise InvalidConfig(f"{path}: {error.message}") from error


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _cluster(wanted: bytes) -> object:
    return msgspec.json.decode(wanted, type=dict[str, object]).get("clusterNetwork", "")

"""Reservations as files, in the form of the upstream host-local plugin: both may use one directory at the same time.

    DIR/10.1.0.7             who holds the address: container id, CR, LF, interface (very old ones: the id alone)
    DIR/last_reserved_ip.0   the address that range set 0 gave out last
    DIR/lock                 flock'ed by whoever changes anything
    DIR/.spare-0 …           files without a word of former reservations, to be used again

A reservation is made by O_EXCL, or by a rename that replaces nothing, so even somebody without the lock could not take
an address twice. The lock belongs to the open file, so it keeps threads of one process apart as well: every use opens
it anew. Budget: 20 system calls an address, however many are taken.

Files are used again since ext4 makes a new one the slower the more were deleted within the last minute, and nodes
delete many: it passes over the inodes of those (recently_deleted in fs/ext4/ialloc.c), up to a millisecond a file.
"""

from __future__ import annotations

import ctypes
import os
import time
from contextlib import suppress
from errno import EEXIST, EISDIR, ELOOP, ENOENT, ENOSYS, ENOTDIR, ENXIO
from fcntl import LOCK_EX, LOCK_NB, flock
from stat import S_ISREG
from typing import TYPE_CHECKING, Final

from underlay.cni.address import Address, parse
from underlay.errors import DeadlineExceeded, StateUnwritable
from underlay.ipam.allocator import Holder

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from types import TracebackType

    from underlay.ipam.allocator import Keep

_LINE_BREAK: Final = "\r\n"
_LAST: Final = "last_reserved_ip."
_ADDRESS_STARTS: Final = frozenset("0123456789abcdefABCDEF:")
_BLANK: Final = b" \t\r\n\0"  # what a file may be filled with that a power cut left behind
_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_CHANGE: Final = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_NO_RESERVATION: Final = (ENOENT, EISDIR, ELOOP, ENOTDIR, ENXIO)
_MAX_CONTENT: Final = 4096
_SPARES: Final = 64  # of one network, at most: 256 KiB
_AT_FDCWD: Final = -100
_NOREPLACE: Final = 1

# By directory, the numbers that are known to lie there; the rest is overwritten in time. Changed under its lock. Other
# processes may put another file there, or none.
_spares: Final[dict[str, list[int]]] = {}


class Store:
    """The directory of one network, locked from ``with`` to its end. Missing directories are made.

    Raises DeadlineExceeded when the lock is not free by the deadline, StateUnwritable.
    """

    def __init__(self, directory: str, deadline: float) -> None:
        self.directory = directory
        self._deadline = deadline
        self._lock = -1
        self._last: dict[int, int] = {}  # by range set, the open file
        self._length: dict[int, int] = {}  # and how much it holds, once it was read

    def __enter__(self) -> Store:
        path = f"{self.directory}/lock"
        try:
            try:
                self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                os.makedirs(self.directory, 0o755, exist_ok=True)
                self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unwritable(path, error) from error
        try:
            self._acquire(path)
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def _acquire(self, path: str) -> None:
        # flock knows no time-out, and a peer that was stopped while it holds the lock must not cost us a thread for
        # good: so we look again, at first after a time as short as a peer needs for one allocation.
        pause = 0.00005
        while True:
            try:
                flock(self._lock, LOCK_EX | LOCK_NB)
                return
            except BlockingIOError as error:
                if time.monotonic() >= self._deadline:
                    raise DeadlineExceeded(
                        f"{path} stayed locked", hint="Another host-local plugin holds the lock; see /proc/locks."
                    ) from error
            time.sleep(pause)
            pause = min(pause * 2, 0.002)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._last.values():
            os.close(file)
        os.close(self._lock)  # and with the open file goes its lock

    def last(self, index: int) -> Address | None:
        """The address that range set ``index`` gave out last; None for none, or where the file was cut off."""
        try:
            content = os.pread(self._last_file(index), _MAX_CONTENT, 0)
            self._length[index] = len(content)
        except OSError:  # none yet, or something else of that name: to forget it costs the round robin alone
            return None
        return parse(content.strip(_BLANK).decode("latin-1"))

    def is_free(self, address: str) -> bool:
        """Whether nobody holds the address. A file without content, or with blanks alone, is what a crash left of a
        reservation that was never answered (whoever makes one holds the lock until it is written): it is removed.
        """
        path = f"{self.directory}/{address}"
        try:
            found = os.stat(path, follow_symlinks=False)
            if not S_ISREG(found.st_mode) or (found.st_size and _read(path)):
                return False
            os.unlink(path)
        except FileNotFoundError:
            return True
        except OSError as error:
            raise _unwritable(path, error) from error
        return True

    def reserve(self, address: str, holder: Holder) -> bool:
        """Take the address; False where somebody was faster."""
        path = f"{self.directory}/{address}"
        while spares := _spares.get(self.directory):
            number = spares.pop()
            try:
                self._use(number, path, _content(holder))
            except OSError as error:
                if error.errno == EEXIST:
                    spares.append(number)
                    return False
                # Somebody removed it, or this file system cannot: as if there were none.
                with suppress(OSError):
                    os.unlink(self._spare(number))
            else:
                return True
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            return False
        except OSError as error:
            raise _unwritable(path, error) from error
        try:
            os.write(file, _content(holder))
        except OSError as error:
            os.unlink(path)
            raise _unwritable(path, error) from error
        finally:
            os.close(file)
        return True

    def _use(self, number: int, path: str, content: bytes) -> None:
        """Let a spare file be a reservation. Raises OSError."""
        spare = self._spare(number)
        file = os.open(spare, _CHANGE)
        try:
            os.pwrite(file, content, 0)
            if os.fstat(file).st_size > len(content):
                os.ftruncate(file, len(content))
        finally:
            os.close(file)
        rename_new(spare, path)

    def _spare(self, number: int) -> str:
        return f"{self.directory}/.spare-{number}"

    def _free(self, path: str) -> None:
        """Remove a reservation; the file is kept for another, if that can be. Raises OSError."""
        spares = _spares.setdefault(self.directory, [])
        number = next((number for number in range(_SPARES) if number not in spares), None)
        if number is None or _renameat2 is None:
            os.unlink(path)
            return
        spare = self._spare(number)
        try:
            os.rename(path, spare)
        except OSError:  # a full disk may have no room for another name, but removes one
            os.unlink(path)
            return
        try:
            _blank(spare)
        except OSError:
            with suppress(OSError):
                os.unlink(spare)
        else:
            spares.append(number)

    def remember(self, index: int, address: str) -> None:
        """Write down what range set ``index`` gave out last. A full disk costs the round robin, not the address."""
        text = address.encode()
        with suppress(OSError):
            file = self._last_file(index, os.O_CREAT)
            # In place: ext4 writes a file that was truncated out to the disk when it is closed (auto_da_alloc), 250 µs.
            os.pwrite(file, text, 0)
            if self._length.get(index, _MAX_CONTENT) > len(text):
                os.ftruncate(file, len(text))

    def _last_file(self, index: int, create: int = 0) -> int:
        """Open until the end of the block: it is read first and written last."""
        if index not in self._last:
            self._last[index] = os.open(f"{self.directory}/{_LAST}{index}", _CHANGE | create, 0o600)
        return self._last[index]

    def remove(self, address: str, still: Callable[[bytes], bool]) -> bool:
        """Give an address back, if what its file holds is ``still`` the case."""
        path = f"{self.directory}/{address}"
        try:
            content = _read(path)
            if content is None or not still(content):
                return False
            self._free(path)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _unwritable(path, error) from error
        return True

    def give_back(self, addresses: Collection[str], holder: Holder) -> list[str]:
        """Remove those of the addresses that ``holder`` holds, or that a crash left without a word on who does."""
        accepted = (*_contents(holder), b"")
        return [address for address in addresses if self.remove(address, lambda content: content in accepted)]


def release(directory: str, holder: Holder, addresses: Collection[str] = (), *, deadline: float) -> list[str]:
    """Give back ``addresses``, or with none given all, that ``holder`` holds; returns those given back.

    Without the lock we only look: 1000 reservations take some milliseconds to read, and every ADD would wait.
    """
    if not os.path.isdir(directory):
        return []
    whole, bare = _contents(holder)
    wanted = list(addresses)
    if not addresses:
        found = list(_reservations(directory))
        wanted = [name for name, content in found if content == whole]
        if not wanted:  # written by a plugin so old that it knew no interface names
            wanted = [name for name, content in found if content == bare]
        if not wanted:
            return []
    with Store(directory, deadline) as store:
        return store.give_back(wanted, holder)


def holds(directory: str, holder: Holder, address: str) -> bool:
    """Whether ``holder`` holds the address."""
    content = _read(f"{directory}/{address}")
    return content is not None and content in _contents(holder)


def holder_of(directory: str, address: str) -> str:
    """Who holds an address, for messages: "container ID (interface)"."""
    content = _read(f"{directory}/{address}") or b""
    container_id, _, ifname = content.decode("utf-8", "replace").partition(_LINE_BREAK)
    return f"container {container_id[:80]}" + (f" ({ifname[:16]})" if ifname else "")


def held(directory: str, holder: Holder) -> list[str]:
    """Every address that ``holder`` holds."""
    accepted = _contents(holder)
    return [name for name, content in _reservations(directory) if content in accepted]


def collect(directory: str, keep: Keep, *, deadline: float) -> list[str]:
    """GC: give back what none of ``keep`` holds; returns the addresses."""
    kept = {content for pair in keep.listed() for content in _contents(Holder(*pair))}

    def stale(content: bytes) -> bool:
        container_id, _, ifname = content.decode("utf-8", "replace").partition(_LINE_BREAK)
        return content not in kept and (container_id, ifname) not in keep  # which may know more by now

    return _remove_all(directory, stale, deadline)


def release_before(
    directory: str, boot_time: float, *, keep: frozenset[tuple[str, str]] = frozenset(), deadline: float
) -> list[str]:
    """Give back reservations last written before ``boot_time`` (seconds since 1970): no container outlives a boot.

    Compare with care: a clock that was set forward after the boot makes live reservations look older than the boot.
    ``keep`` (container id, interface) are those known to be of this boot.
    """
    if not os.path.isdir(directory):
        return []
    with os.scandir(directory) as entries:
        old = {
            one.name
            for one in entries
            if _is_address(one.name) and one.stat(follow_symlinks=False).st_mtime < boot_time
        }
    kept = {content for pair in keep for content in _contents(Holder(*pair))}
    return _remove_all(directory, lambda content: content not in kept, deadline, only=old)


def _remove_all(
    directory: str, stale: Callable[[bytes], bool], deadline: float, only: Collection[str] | None = None
) -> list[str]:
    found = _reservations(directory)
    seen = {name: content for name, content in found if stale(content) and (only is None or name in only)}
    if not seen:
        return []

    def remove(name: str) -> bool:  # unless somebody else has it since
        return store.remove(name, lambda content: content == seen[name] and stale(content))

    with Store(directory, deadline) as store:
        return [name for name in seen if remove(name)]


def _reservations(directory: str) -> Iterator[tuple[str, bytes]]:
    """Names and contents (without what surrounds them) of a directory's reservations, at one look without the lock."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _unwritable(directory, error) from error
    for name in names:
        if _is_address(name):
            content = _read(f"{directory}/{name}")
            if content is not None:
                yield name, content


def _is_address(name: str) -> bool:
    return name[0] in _ADDRESS_STARTS and parse(name) is not None


def _contents(holder: Holder) -> tuple[bytes, bytes]:
    """What a reservation of the holder may hold: as written now, and by plugins so old that they knew no interfaces."""
    return _content(holder), os.fsencode(holder.container_id)


def _content(holder: Holder) -> bytes:
    return os.fsencode(f"{holder.container_id}{_LINE_BREAK}{holder.ifname}")


def _blank(path: str) -> None:
    """Leave nothing of a file's content. In place: to give its block back would take 100 us. Raises OSError."""
    file = os.open(path, _CHANGE)
    try:
        size = min(os.fstat(file).st_size, _MAX_CONTENT)
        os.pwrite(file, b" " * size, 0)
        if size == _MAX_CONTENT:
            os.ftruncate(file, size)
    finally:
        os.close(file)


def _read(path: str) -> bytes | None:
    """What a file holds, without what surrounds it; None where there is none, or something else of that name."""
    try:
        file = os.open(path, _READ)
        try:
            return os.read(file, _MAX_CONTENT).strip(_BLANK)
        finally:
            os.close(file)
    except OSError as error:
        if error.errno in _NO_RESERVATION:
            return None
        raise _unwritable(path, error) from error


def _kernels_rename() -> Callable[..., int] | None:
    try:
        found = ctypes.CDLL(None, use_errno=True).renameat2  # not with every C library
    except AttributeError:
        return None
    found.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    return found


_renameat2: Final = _kernels_rename()


def rename_new(source: str, target: str) -> None:
    """Rename a file, replacing nothing (renameat2(2)). Raises OSError."""
    if _renameat2 is None:
        raise OSError(ENOSYS, os.strerror(ENOSYS))
    if _renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _NOREPLACE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), source, None, target)


def _unwritable(path: str, error: OSError) -> StateUnwritable:
    return StateUnwritable(
        f"{path}: {error.strerror}", hint="Free disk space, or make the host-local data directory writable."
    )

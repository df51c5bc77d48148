"""IPAM as plugins see it: whichever plugin the ``ipam`` section names, built in or an executable."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from underlay.cni.config import inject
from underlay.cni.request import Verb
from underlay.cni.versions import check_verb
from underlay.delegate.entries import ExecDelete
from underlay.delegate.exec import Invocation
from underlay.errors import IncompatibleVersion, InvalidConfig
from underlay.ipam.allocator import Holder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from underlay.cni.result import Result
    from underlay.delegate.attachment import Sandbox
    from underlay.delegate.exec import Executor
    from underlay.ipam.allocator import Allocator, Keep
    from underlay.net.undo import UndoLog
    from underlay.plugins.context import Call


class Dispatch:
    """The ``Ipam`` of one attachment."""

    def __init__(
        self,
        allocators: Mapping[str, Allocator],
        executor: Executor,
        *,
        sandbox: Sandbox,
        undo: UndoLog,
        deadline: float,
    ) -> None:
        self._allocators = allocators
        self._executor = executor
        self._sandbox = sandbox
        self._undo = undo
        self._deadline = deadline

    def add(self, call: Call) -> Result:
        """Allocate; how to give back is in the journal before anything is held."""
        allocator = self._allocator(call)
        if allocator is not None:
            return allocator.add(
                call.conf,
                _holder(call),
                call.args,
                record=self._undo.record,
                deadline=self._deadline,
                network=call.network,
            )
        # before the ledger hears of a plugin that is not there
        self._executor.find(call.conf.ipam_type, self._sandbox.path)
        conf = inject(call.conf)
        self._undo.record(exec_delete(call, call.conf.ipam_type, conf, self._sandbox, ipam=True))
        invoked = self._invocation(call, Verb.ADD, conf)
        return self._executor.result(invoked, self._deadline, version=call.conf.version)

    def check(self, call: Call) -> None:
        """Raise CheckFailed, or what the executable says, unless prevResult's addresses are still held."""
        allocator = self._allocator(call)
        if allocator is not None:
            allocator.check(call.conf, _holder(call), call.args)
        elif may(call, Verb.CHECK):
            self._run(call, Verb.CHECK)

    def delete(self, call: Call) -> None:
        """Give back; of what was never held: nothing."""
        allocator = self._allocator(call)
        if allocator is not None:
            allocator.delete(call.conf, _holder(call), deadline=self._deadline)
        else:
            self._run(call, Verb.DEL)

    def status(self, call: Call) -> None:
        """Raise NotAvailable, or what the executable says."""
        allocator = self._allocator(call)
        if allocator is not None:
            allocator.status(call.conf)
        elif may(call, Verb.STATUS):
            self._run(call, Verb.STATUS)

    def gc(self, call: Call, keep: Keep) -> None:
        """Give back whatever is held by none of ``keep``."""
        allocator = self._allocator(call)
        if allocator is not None:
            allocator.gc(call.conf, keep, deadline=self._deadline)
        elif may(call, Verb.GC):
            conf = with_valid_attachments(inject(call.conf), keep.listed())
            self._executor.run(self._invocation(call, Verb.GC, conf), self._deadline)

    def _allocator(self, call: Call) -> Allocator | None:
        if not call.conf.ipam_type:
            raise InvalidConfig('"ipam.type" is missing', hint='Name an IPAM plugin, for example "host-local".')
        return self._allocators.get(call.conf.ipam_type)

    def _run(self, call: Call, verb: Verb) -> None:
        self._executor.run(self._invocation(call, verb, inject(call.conf)), self._deadline)

    def _invocation(self, call: Call, verb: Verb, conf: bytes) -> Invocation:
        return invocation(call, verb, conf, self._sandbox, plugin_type=call.conf.ipam_type)


def invocation(call: Call, verb: Verb, conf: bytes, sandbox: Sandbox, *, plugin_type: str) -> Invocation:
    """The executable's side of a call."""
    return Invocation(
        verb=verb,
        type=plugin_type,
        stdin=conf,
        path=sandbox.path,
        container_id=call.container_id,
        netns=call.netns,
        ifname=call.ifname,
        args=sandbox.args_text,
    )


def exec_delete(call: Call, plugin_type: str, conf: bytes, sandbox: Sandbox, *, ipam: bool = False) -> ExecDelete:
    """The undo entry of an executable's ADD."""
    return ExecDelete(
        plugin=plugin_type,
        conf=conf.decode(),
        version=call.conf.version,
        container_id=call.container_id,
        netns=call.netns,
        ifname=call.ifname,
        args=sandbox.args_text,
        path=sandbox.path,
        ipam=ipam,
    )


def with_valid_attachments(conf: bytes, keep: frozenset[tuple[str, str]]) -> bytes:
    """An executable's standard input for GC (specification 1.1.0, section 2 "GC")."""
    keys: dict[str, object] = dict(msgspec.json.decode(conf, type=dict[str, msgspec.Raw]))
    keys["cni.dev/valid-attachments"] = [{"containerID": cid, "ifname": ifname} for cid, ifname in sorted(keep)]
    return msgspec.json.encode(keys)


def may(call: Call, verb: Verb) -> bool:
    """Whether an executable of that configuration's version knows the verb; one that does not is left alone."""
    try:
        check_verb(call.conf.version, verb)
    except IncompatibleVersion:
        return False
    return True


def _holder(call: Call) -> Holder:
    return Holder(call.container_id, call.ifname)

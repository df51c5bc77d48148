"""One network's plugins, one after the other: forwards for ADD, backwards for DEL (specification, section 3).

A built-in plugin is a function call and hands its Result on as it is; JSON is made for executables alone.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from msgspec.structs import replace

from underlay.cni.config import inject, with_runtime
from underlay.cni.request import Verb
from underlay.cni.result import Result
from underlay.delegate.attachment import Timing
from underlay.delegate.entries import Chained
from underlay.delegate.ipam import exec_delete, invocation, may, with_valid_attachments
from underlay.errors import DeadlineExceeded, NotAvailable, PluginMissing, UnderlayError
from underlay.net import link
from underlay.plugins.context import Call
from underlay.plugins.parsed import Parsed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from underlay.cni.config import NetworkConfig, PluginConfig
    from underlay.delegate.attachment import Attachment, Sandbox
    from underlay.delegate.exec import Executor
    from underlay.ipam.allocator import Keep
    from underlay.plugins.context import Context, Plugin


class Chain:
    """A network's plugins for one NIC of one sandbox. ``times`` gets one entry per plugin called."""

    def __init__(
        self,
        network: NetworkConfig,
        attachment: Attachment,
        *,
        sandbox: Sandbox,
        plugins: Mapping[str, Plugin],
        executor: Executor,
        times: list[Timing],
    ) -> None:
        self._network = network
        self._attachment = attachment
        self._sandbox = sandbox
        self._plugins = plugins
        self._executor = executor
        self._times = times

    def add(self, ctx: Context, *, apart: bool = False, onto: Chained | None = None) -> Result:
        """ADD of every plugin; the first fault is raised and the undoing left to the caller.

        ``apart``: record where the plugins begin that only build on the NIC; ``onto``: ADD of those alone.
        """
        plugins = self._network.plugins
        first, prev = (onto.plugin, onto.prev) if onto is not None else (0, plugins[0].prev)
        builder = next((n for n, conf in enumerate(plugins) if n and self._builds(conf)), None) if apart else None
        for number, conf in enumerate(plugins[first:], first):
            if number == builder:
                ctx.undo.record(Chained(number, prev or Result()))
            if time.monotonic() > ctx.deadline:
                raise DeadlineExceeded(f"no time left before plugin {conf.type!r} of network {self._network.name!r}")
            call = self._call(conf, prev)
            begun = time.perf_counter()
            try:
                prev = self._add(call, ctx)
            finally:
                self._times.append(Timing(conf.type, (time.perf_counter() - begun) * 1000))
        return prev or Result()

    def check(self, ctx: Context, result: Result | None) -> None:
        """CHECK of every plugin in the order of ADD against the whole network's result; the first fault is raised."""
        if self._network.disable_check:
            return
        for conf in self._network.plugins:
            call = self._call(conf, result)
            plugin = self._plugins.get(conf.type)
            if plugin is not None:
                plugin.check(call, ctx)
            elif may(call, Verb.CHECK):
                self._run(call, Verb.CHECK, ctx)

    def delete(self, ctx: Context) -> list[UnderlayError]:
        """DEL of every plugin, last first, from the configuration alone; every fault is returned, none stops it."""
        errors: list[UnderlayError] = []
        for conf in reversed(self._network.plugins):
            call = self._call(conf, conf.prev)
            plugin = self._plugins.get(conf.type)
            try:
                if plugin is not None:
                    plugin.delete(call, ctx)
                else:
                    self._run(call, Verb.DEL, ctx)
            except UnderlayError as error:
                errors.append(error)
        return errors

    def status(self, ctx: Context) -> None:
        """STATUS of every plugin; a plugin that is not there cannot serve ADD."""
        for conf in self._network.plugins:
            call = self._call(conf, None)
            plugin = self._plugins.get(conf.type)
            try:
                if plugin is not None:
                    plugin.status(call, ctx)
                elif may(call, Verb.STATUS):
                    self._run(call, Verb.STATUS, ctx)
                else:
                    self._executor.find(conf.type, self._sandbox.path)
            except PluginMissing as error:
                raise NotAvailable(error.message, hint=error.hint) from error

    def gc(self, ctx: Context, keep: Keep) -> list[UnderlayError]:
        """GC of every plugin for what it alone knows of; every fault is returned, none stops it."""
        errors: list[UnderlayError] = []
        for conf in () if self._network.disable_gc else self._network.plugins:
            call = self._call(conf, None)
            plugin = self._plugins.get(conf.type)
            try:
                if plugin is not None:
                    plugin.gc(call, ctx, keep)
                elif may(call, Verb.GC):
                    stdin = with_valid_attachments(inject(call.conf), keep.listed())
                    self._executor.run(
                        invocation(call, Verb.GC, stdin, self._sandbox, plugin_type=conf.type), ctx.deadline
                    )
            except UnderlayError as error:
                errors.append(error)
        return errors

    def _builds(self, conf: PluginConfig) -> bool:
        plugin = self._plugins.get(conf.type)
        return isinstance(plugin, Parsed) and plugin.chained

    def _add(self, call: Call, ctx: Context) -> Result:
        plugin = self._plugins.get(call.conf.type)
        if plugin is not None:
            return plugin.add(call, ctx)
        ctx.made.clear()  # it may change what built-in plugins have made
        self._executor.find(call.conf.type, self._sandbox.path)  # before the ledger hears of a plugin that is not there
        stdin = inject(call.conf)
        ctx.undo.record(exec_delete(call, call.conf.type, stdin, self._sandbox))
        invoked = invocation(call, Verb.ADD, stdin, self._sandbox, plugin_type=call.conf.type)
        result = self._executor.result(invoked, ctx.deadline, version=call.conf.version)
        if ctx.mtus and ctx.pod is not None:
            found = link.get_many(ctx.pod.rtnl, list(ctx.mtus))
            ctx.mtus.update((nic.name, nic.mtu) for nic in found if nic is not None)
        return result

    def _call(self, conf: PluginConfig, prev: Result | None) -> Call:
        attachment = self._attachment
        if attachment.runtime:
            conf = with_runtime(conf, attachment.runtime)
        if attachment.cni_args:
            conf = replace(conf, prev=prev, cni_args={**conf.cni_args, **attachment.cni_args})
        elif conf.prev is not prev:
            conf = replace(conf, prev=prev)
        sandbox = self._sandbox
        return Call(conf, sandbox.container_id, sandbox.netns, attachment.ifname, sandbox.args, attachment.network)

    def _run(self, call: Call, verb: Verb, ctx: Context) -> None:
        invoked = invocation(call, verb, inject(call.conf), self._sandbox, plugin_type=call.conf.type)
        self._executor.run(invoked, ctx.deadline)

"""Structs are looked at before there are threads: two that look at once take the process with them."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import threading, time
import underlay.daemon.app, underlay.daemon.cluster_pools
from underlay.cni import shapes
began = time.perf_counter()
count = shapes.make_ready()
took = time.perf_counter() - began
from underlay.ipam.pools import section
barrier = threading.Barrier(8)
def read(number):
    barrier.wait()
    section._read(b'{"ipam": {"type": "spiderpool", "log_level": "info"}}')
threads = [threading.Thread(target=read, args=(n,)) for n in range(8)]
[each.start() for each in threads], [each.join() for each in threads]
print(count, took)
"""


def test_every_struct_of_the_daemon_is_made_ready_in_a_moment() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True)
    count, took = done.stdout.split()
    assert int(count) > 50
    assert float(took) < 1.0


RACE = """
import sys, threading, msgspec
from underlay.cni import shapes
sys.setswitchinterval(1e-6)
made = {}
for turn in range(20):
    fields = "a: S{0}_{1} | None = None; b: list[int] | None = None"
    lines = [f"class S{turn}_{n}(msgspec.Struct): " + fields.format(turn, n - 1) for n in range(1, 20)]
    exec("\\n".join(["import msgspec", f"class S{turn}_0(msgspec.Struct):\\n    b: int = 0", *lines]), made)
    shapes.make_ready()
    barrier = threading.Barrier(8)
    def work(shape=made[f"S{turn}_19"]):
        barrier.wait()
        msgspec.json.decode(b'{"a": {"a": {"b": [1]}}}', type=shape)
    threads = [threading.Thread(target=work) for _ in range(8)]
    [each.start() for each in threads], [each.join() for each in threads]
"""


def test_eight_threads_may_decode_what_is_ready_for_the_first_time() -> None:
    """Without make_ready() this ends by SIGSEGV."""
    subprocess.run([sys.executable, "-c", RACE], check=True)

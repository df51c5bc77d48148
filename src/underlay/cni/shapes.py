"""What JSON is decoded into, made ready before there are threads.

msgspec looks at a Struct when it is first decoded, and keeps what it found at the class, from the first moment on: a
second thread that decodes the same Struct meanwhile is handed what is half done, and the process dies of it (a null
pointer in msgspec 0.22). Under load a daemon's first burst of calls met that.
"""

from __future__ import annotations

import msgspec


def make_ready() -> int:
    """Look at every Struct that has been imported; how many. Takes a few ms; to be called while there is one thread."""
    found: set[type[msgspec.Struct]] = set()
    waiting: list[type[msgspec.Struct]] = [msgspec.Struct]
    while waiting:
        for each in waiting.pop().__subclasses__():
            if each not in found:
                found.add(each)
                waiting.append(each)
    ready = 0
    for shape in found:
        try:
            msgspec.json.Decoder(shape)
        except (TypeError, NameError):  # one that is never decoded: its annotations are for the type checker alone
            continue
        ready += 1
    return ready

"""Which devices of a resource are best given together: near each other, and yet not all on one cable.

The kubelet asks with what is free. On one NUMA node as far as it goes; each next device on the physical function that
the container has fewest of, then on the one with most left; the lowest address decides. So a container with two devices
can bond them, and containers with one are spread over the physical functions.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from underlay.device_plugin.api import Preference
    from underlay.device_plugin.inventory import Held


def choose(wish: Preference, devices: Mapping[str, Held]) -> list[str]:
    """As many of the available ones as are wanted and known, the musts first."""
    chosen = [each for each in dict.fromkeys(wish.must) if each in devices]
    free = [each for each in dict.fromkeys(wish.available) if each in devices and each not in chosen]
    near = _near(chosen, free, wish.size, devices)
    while free and len(chosen) < wish.size:
        mine = Counter(devices[each].pf.address for each in chosen)
        left = Counter(devices[each].pf.address for each in free)

        def worth(each: str, mine: Counter[str] = mine, left: Counter[str] = left) -> tuple[object, ...]:
            pf = devices[each].pf.address
            return (devices[each].numa not in near, mine[pf], -left[pf], each)

        best = min(free, key=worth)
        free.remove(best)
        chosen.append(best)
    return chosen


def _near(chosen: list[str], free: list[str], size: int, devices: Mapping[str, Held]) -> set[int | None]:
    """The NUMA nodes to stay on: where the musts are, or else the one that holds enough with most left."""
    if chosen:
        return {devices[each].numa for each in chosen}
    left = Counter(devices[each].numa for each in free)
    enough = [numa for numa, count in left.most_common() if count >= size]
    return set(enough[:1]) if enough else set(left)

"""What pods that are gone left behind is swept for as long as the ledger names them, and not longer than a minute."""

from __future__ import annotations

from dataclasses import dataclass, field

from underlay.daemon.departures import Departures


@dataclass
class Row:
    pod_uid: str


@dataclass
class Node:
    """A ledger, the news, a clock, and how often it was swept."""

    uids: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    now: float = 0.0
    sweeps: int = 0

    def rows(self) -> list[Row]:
        return [Row(uid) for uid in self.uids]

    def news(self) -> list[str]:
        told, self.told = self.told, []
        return told

    def sweep(self) -> None:
        self.sweeps += 1

    def departures(self) -> Departures:
        return Departures(self.news, self, self.sweep, lambda: self.now)  # type: ignore[arg-type]


def test_it_sweeps_while_the_ledger_names_a_pod_that_is_gone() -> None:
    node = Node(["a", "b"])
    departures = node.departures()
    departures.look()
    assert node.sweeps == 0
    node.told = ["a", "never-here"]
    departures.look()
    departures.look()
    assert node.sweeps == 2
    node.uids.remove("a")
    departures.look()
    departures.look()
    assert node.sweeps == 2


def test_what_stays_is_left_to_the_interval_after_a_minute() -> None:
    node = Node(["a"], ["a"])
    departures = node.departures()
    departures.look()
    node.now = 59.0
    departures.look()
    node.now = 61.0
    departures.look()
    departures.look()
    assert node.sweeps == 2

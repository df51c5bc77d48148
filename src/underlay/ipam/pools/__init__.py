"""Addresses out of SpiderIPPools: the IPAM plugin ``spiderpool``.

    manifests │ API ──▶ objects ─┐
    pod, namespace, node, NAD ───┴─▶ choose (pure) ──▶ pools in order, and why
                                                          │
    journal (SQLite, durable) ◀── leases ──▶ space (in memory: which address is free)
                                     │
                                  shares: which part of a pool this node hands out: all of it, or what it owns
                                     │
    blocks of the API ──▶ view ──▶ ownership ◀── owned (while an ADD waits), upkeep (in the background)

Nothing here sees the kernel or Kubernetes: what is known of pods and nodes comes in through
:class:`~underlay.ipam.pools.surroundings.Surroundings`. This package imports nothing by itself.
"""

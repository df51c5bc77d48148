"""Address management: which addresses a NIC gets, and where that is written down.

    HOST_LOCAL, STATIC   each an object with the same verbs (see :class:`Allocator`), named as in "ipam.type"
    undo.Release         what gives addresses back; recorded before they are taken
    store.release_before forgets the reservations of an earlier boot

    conf ──▶ section (checked) ──▶ ranges, candidates (pure) ──▶ store (files) ──▶ Result

Nothing here sees the kernel. This package imports nothing by itself.
"""

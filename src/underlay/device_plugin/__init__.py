"""The kubelet's device plugin for virtual functions: one resource for each entry of its configuration.

configuration ─▶ resources ─┐
sysfs, links ───▶ inventory ─┴▶ which devices a resource has, and how they are ─▶ service ─▶ ListAndWatch
                                                        Allocate: environment, nodes, CDI ◀── the kubelet
"""

"""``underlay daemon``: the flags of the node's daemon, and its start."""

from __future__ import annotations

import argparse
from typing import Any

_EPILOG = """\
keys of the configuration file (YAML or JSON), with their defaults; a flag of the same name counts over its key:
  state_dir: /var/lib/underlay         the ledger
  run_dir: /run/underlay               socket, lock and spool
  conf_dir: /etc/cni/multus/net.d      network configurations that Multus finds by name
  bin_dir: [/opt/cni/bin]              plugins that are not built in, after CNI_PATH
  manifest_dir: /etc/underlay/manifests  pods and NetworkAttachmentDefinitions as files
  chroot_dir: ""                       where the node's root lies, in a container; "": it is the daemon's own
  multus_daemon_config: ""             a daemon-config.json of Multus, taken over as it is
  workers: 16                          requests served at a time
  queue: 1024                          requests that wait for a worker
  deadline: 55                         seconds one request may take
  delegate_limit: 64                   processes of other plugins at a time
  reclaim_interval: 10                 seconds between looks for sandboxes that are gone
  stop_deadline: 20                    seconds for requests in flight after SIGTERM
  hotplug: false                       NICs come and go as a running pod's networks annotation changes
  pool_rest: 30                        seconds an address given back to a pool is not used again while others are free
  pools: auto                          where address pools are: manifests, cluster (the API server), or auto: the API
                                       server where one is used and no manifest has a pool
  health_address: ""                   HOST:PORT of /healthz and /readyz
  pod_resources_socket: /var/lib/kubelet/pod-resources/kubelet.sock
                                       the kubelet's answer to which devices a pod has, or else
  device_checkpoint: /var/lib/kubelet/device-plugins/kubelet_internal_checkpoint
  device_info_dir: /var/run/k8s.cni.cncf.io/devinfo  files about devices, of device plugins and CNI plugins
  log:
    level: info                        debug, info, warn or error
    file: ""                           "" is standard error
    max_size: 100                      MB; then the file is rotated
    max_age: 5                         days that rotated files are kept
    max_count: 5                       rotated files that are kept
    plugin_dir: /var/log               where plugins' own log_options may write, "" nowhere
  kube:
    kubeconfig: ""                     pods and networks from this file's API server, not from manifest_dir
    context: ""                        of the kubeconfig; "" is its current-context
    in_cluster: false                  the same with the service account of the daemon's own pod
    node_name: ""                      this node's name there; "" is (MULTUS_)NODE_NAME of the environment

signals: SIGTERM, SIGINT finish what is in flight and stop, a second one stops at once; SIGHUP reopens the log files

examples:
  underlay daemon
  underlay daemon --config /etc/underlay/underlay.yaml --log-level debug
  underlay daemon --kubeconfig /etc/cni/net.d/multus.d/multus.kubeconfig --node-name node-1
  underlay daemon --run-dir /run/lab --state-dir /run/lab/state --bin-dir /run/lab/bin
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand. A flag that is not given leaves the file's value."""
    parser = subparsers.add_parser(
        "daemon",
        description='Run the node\'s daemon: it serves the CNI executables that "underlay install" lays.',
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--config", metavar="FILE", help="default /etc/underlay/underlay.yaml, if it is there")
    for flag in ("--state-dir", "--run-dir", "--conf-dir", "--manifest-dir", "--chroot-dir"):
        parser.add_argument(flag, metavar="DIR")
    parser.add_argument("--multus-daemon-config", metavar="FILE", help="a daemon-config.json of Multus")
    parser.add_argument("--bin-dir", metavar="DIR", action="append", help="may be given several times")
    parser.add_argument("--workers", type=int, metavar="N")
    parser.add_argument("--queue", type=int, metavar="N")
    parser.add_argument("--deadline", type=float, metavar="SECONDS")
    parser.add_argument("--delegate-limit", type=int, metavar="N")
    parser.add_argument("--reclaim-interval", type=float, metavar="SECONDS")
    parser.add_argument("--stop-deadline", type=float, metavar="SECONDS")
    parser.add_argument("--health-address", metavar="HOST:PORT")
    parser.add_argument("--kubeconfig", metavar="FILE", help="take pods and networks from this API server")
    parser.add_argument("--in-cluster", action="store_true", help="the same with the pod's service account")
    parser.add_argument("--node-name", metavar="NAME", help="this node's name there; default NODE_NAME")
    parser.add_argument(
        "--pools",
        metavar="WHERE",
        choices=("auto", "manifests", "cluster"),
        help="where address pools are: %(choices)s",
    )
    parser.add_argument("--log-level", metavar="LEVEL", choices=("debug", "info", "warn", "error"))
    parser.add_argument("--log-file", metavar="FILE")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Serve until a signal stops the daemon."""
    from underlay.daemon import app, config

    flags: dict[str, Any] = {key: value for key, value in vars(options).items() if key not in ("config", "run")}
    log = {key[4:]: flags.pop(key) for key in ("log_level", "log_file") if key in flags}
    kube = {key: flags.pop(key) for key in ("kubeconfig", "in_cluster", "node_name") if key in flags}
    flags.update({section: given for section, given in (("log", log), ("kube", kube)) if given})
    return app.run(config.load(getattr(options, "config", None), flags))

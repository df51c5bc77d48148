#!/bin/sh
# Run a command where the fixed names of run.py and protocol.py (namespaces cfnode…, /tmp/cf-host-local, the log and
# state directories of plugins) are its own: several may run at a time, next to a lab or to a real node's daemon.
set -e
if [ "$1" != inside ]; then
    exec unshare --mount --net --propagation private "$0" inside "$@"
fi
shift
mount -t tmpfs run /run
mkdir /run/netns /run/before
mount -t tmpfs log /var/log
mount -t tmpfs cni /var/lib
# /tmp anew, with everything of the old one reachable under its old name except what protocol.py writes and removes.
mount --bind /tmp /run/before
mount -t tmpfs -o mode=1777 tmp /tmp
find /run/before -mindepth 1 -maxdepth 1 ! -name cf-host-local -exec ln -s -t /tmp '{}' +
# A node's and a pod's own link-local addresses have been there for long when a plugin comes. In a fresh lab they would
# still be probed for duplicates, for up to two seconds, and a plugin that is faster meets neighbours that do not answer.
ip=$(command -v ip)
mkdir /run/bin
cat >/run/bin/ip <<EOF
#!/bin/sh
[ "\$1 \$2" = "netns add" ] || exec $ip "\$@"
$ip "\$@" && exec $ip netns exec "\$3" sh -c 'echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad'
EOF
chmod +x /run/bin/ip
PATH=/run/bin:$PATH exec "$@"

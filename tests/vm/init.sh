#!/busybox sh
# The machine's first process: the host's root, read-only, with a memory file system above it; then /exchange/run.
B=/busybox
$B mkdir -p /proc /sys /dev /lower /above /root
$B mount -t proc proc /proc
$B mount -t sysfs sys /sys
$B mount -t devtmpfs dev /dev
while echo alive >/dev/ttyS0; do $B sleep 5; done & # who hears nothing knows that the machine hangs
for module in /modules/*; do $B insmod "$module" || echo "cannot load $module"; done
$B mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose root /lower
$B mount -t tmpfs above /above
$B mkdir /above/upper /above/work
$B mount -t overlay -o lowerdir=/lower,upperdir=/above/upper,workdir=/above/work root /root
$B mkdir -p /exchange /tree
$B mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 exchange /exchange
tree=$($B cat /exchange/tree) # it may lie in /tmp, which is another one from here on
$B mount -o bind "/root$tree" /tree
for kind in proc:proc sysfs:sys devtmpfs:dev tmpfs:run tmpfs:tmp tmpfs:mnt; do
    $B mount -t "${kind%%:*}" "${kind%%:*}" "/root/${kind##*:}"
done
$B mkdir -p /root/dev/shm /root/dev/pts /root/run/netns "/root$tree"
$B mount -o bind /tree "/root$tree"
$B mount -t tmpfs shm /root/dev/shm
$B mount -t devpts pts /root/dev/pts
$B ip link set lo up
$B mount -o bind /exchange /root/mnt
$B chroot /root /bin/sh /mnt/run </dev/null >/dev/ttyS1 2>&1
echo $? >/exchange/status
$B sync
$B poweroff -f

#!/bin/busybox sh
# The guest's first process, twice: in the initramfs it makes the real root (on tmpfs, since pivot_root can't leave the
# initramfs), then there it runs the command and powers off. With systemd, that takes its place, and runs the command as
# a service.
set -e
export PATH=/bin:/sbin:/usr/bin

if [ -z "$1" ]; then
    /bin/busybox mkdir -p /new
    /bin/busybox mount -t tmpfs -o mode=755,size=75% tmpfs /new
    cd /new
    /bin/busybox mkdir -p bin sbin dev etc lib modules opt proc root run sys tmp usr/bin var/lib var/log vm
    # The initramfs stays where it is, and what is in it is shown in the new root: nothing is copied.
    for folder in bin modules vm; do /bin/busybox mount -o bind /$folder /new/$folder; done
    if [ -e /vm/systemd ]; then
        /bin/busybox mount -o bind /usr /new/usr
        /bin/busybox rmdir lib
        /bin/busybox ln -s usr/lib usr/lib64 .
        /bin/busybox ln -s ../run var/run
    fi
    /bin/busybox cp -a /etc/. /new/etc/
    /bin/busybox mount -o move /new /
    exec /bin/busybox chroot . /bin/busybox sh /vm/init second
fi

if [ "$1" = second ]; then
    mount -t proc proc /proc
    mount -t sysfs sysfs /sys
    mount -t devtmpfs devtmpfs /dev
    mkdir -p /dev/pts /dev/shm /dev/mqueue
    mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts /dev/pts
    mount -t tmpfs -o mode=1777 tmpfs /dev/shm
    mount -t mqueue mqueue /dev/mqueue
    mount -t tmpfs -o mode=755 tmpfs /run
    mount -t cgroup2 -o nsdelegate cgroup2 /sys/fs/cgroup
    ln -sf /proc/self/fd /dev/fd
    while read -r module; do insmod "/modules/$module"; done < /vm/modules
    hostname -F /etc/hostname
    ip link set lo up
    if [ -e /sys/class/net/eth0 ]; then
        ip address add 10.0.2.15/24 dev eth0
        ip link set eth0 up
        ip route add default via 10.0.2.2
    fi
    # Lines end as the command ends them.
    stty -F /dev/ttyS0 -onlcr || true
    if [ -e /vm/systemd ]; then exec /usr/lib/systemd/systemd; fi
fi

set +e
cd /root
sh /vm/command < /dev/null
echo "exit $?" > /dev/ttyS1
sync
dmesg -n 1
poweroff -f

#!/bin/busybox sh
# First program in the guest: loads drivers, joins the read-only root file system with the scratch disk, and hands over.
# Disks come in the order of the command line: vda is the root file system, vdb the scratch disk.
export PATH=/bin

fail() {
    echo "initramfs: $1" > /dev/console
    busybox reboot -f
}

busybox mkdir -p /dev /proc /sys /rootfs /scratch /root
busybox mount -t devtmpfs devtmpfs /dev
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
while read -r module; do
    busybox insmod "/modules/$module" || fail "cannot load $module"
done < /modules/order
busybox mount -t squashfs -o ro /dev/vda /rootfs || fail "cannot mount the root file system"
busybox mount -t ext4 -o noatime,discard /dev/vdb /scratch || fail "cannot mount the scratch disk"
busybox mkdir -p /scratch/upper /scratch/work
busybox mount -t overlay -o lowerdir=/rootfs,upperdir=/scratch/upper,workdir=/scratch/work overlay /root ||
    fail "cannot join root file system and scratch disk"
for folder in dev proc sys; do
    busybox mount --move "/$folder" "/root/$folder"
done
exec busybox switch_root /root /usr/bin/python3 -I -m kernel_guest
fail "cannot start the agent"

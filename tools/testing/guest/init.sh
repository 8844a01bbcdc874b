#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# First program in a test VM whose root file system is the host's, read-only.
# DMTEST, from the kernel's command line or the environment, is the results
# folder on the host; it holds config.json and is the only place written to.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mountpoint -q /proc || mount -t proc proc /proc
mountpoint -q /sys || mount -t sysfs sys /sys
mountpoint -q /dev || mount -t devtmpfs dev /dev
if [ $$ -eq 1 ]; then
	mount -t tmpfs -o size=75% run /run
	mkdir /run/results
	# The path is all of the options, which only the old system call passes on;
	# newer programs named mount use another one.
	busybox mount -t hostfs -o "$DMTEST" none /run/results
fi
mount -t debugfs debug /sys/kernel/debug 2>/dev/null
mkdir -p /run/tmp /run/lock
# Tests hold I/O back; it is more than that if it takes as long as this.
echo 100 >/proc/sys/kernel/hung_task_timeout_secs
ip link set lo up 2>/dev/null
# Virtme-ng starts udevd, which would open new devices just when somebody removes them.
udevadm control --exit 2>/dev/null
# Who finds its socket waits for what it does about new devices.
rm -f /run/udev/control
export HOME=/run/tmp TMPDIR=/run/tmp LANG=C.UTF-8 TERM=dumb
export DM_DISABLE_UDEV=1 PYTHONDONTWRITEBYTECODE=1
cd /run/tmp || exit 1
/usr/bin/python3 "$(dirname "$0")/main.py" /run/results
status=$?
dmesg >/run/results/dmesg.log
echo $status >/run/results/status
sync
[ $$ -eq 1 ] && exec busybox poweroff -f
exit $status

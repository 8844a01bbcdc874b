# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2034
#
# Sourced by the scripts beside it: where things are, and how long steps report.

set -euo pipefail

# The distribution's tools come first: the test kernels are built with its rustc,
# which one of rustup, earlier in PATH, cannot replace.
PATH=/usr/sbin:/usr/bin:/sbin:/bin:$PATH
LC_ALL=C.UTF-8
export PATH LC_ALL

top=$(cd "$(dirname "$0")/.." && pwd)
cache=${DM_THIN_CACHE:-$HOME/.cache/dm-thin-rust}
jobs=$(nproc)
# The kernel's compiler, and what reads the coverage that it counts.
llvm=22
begun=$(date +%s)

# Time since the script began, as m:ss.
elapsed() {
	local seconds=$(($(date +%s) - begun))
	printf '%d:%02d' $((seconds / 60)) $((seconds % 60))
}

say() {
	printf '[%s] %s\n' "$(elapsed)" "$*" >&2
}

die() {
	printf '%s: %s\n' "${0##*/}" "$*" >&2
	exit 1
}

# run STEP LOG DETAIL COMMAND...: runs the command with its output appended to
# LOG. Every 15 seconds a line says how far it is, DETAIL being a command whose
# output tells it. A failure shows the end of the log and ends the script.
run() {
	local step=$1 log=$2 detail=$3 ticks=0 status=0
	shift 3
	mkdir -p "$(dirname "$log")"
	printf '\n$ %s\n' "$*" >>"$log"
	say "$step"

	# A process group of its own, so that all of it can be ended.
	trap 'kill -- "-$!" 2>/dev/null; wait; exit 130' INT TERM HUP
	set -m
	"$@" >>"$log" 2>&1 </dev/null &
	set +m
	local child=$!
	while kill -0 "$child" 2>/dev/null; do
		sleep 0.2
		ticks=$((ticks + 1))
		if [ $((ticks % 75)) = 0 ]; then
			say "$step: $($detail)"
		fi
	done
	wait "$child" || status=$?
	trap - INT TERM HUP

	if [ "$status" != 0 ]; then
		tail -n 30 "$log" >&2
		die "$step failed; the whole log is $log"
	fi
}

# A DETAIL for `run`: the end of its log.
last_line() {
	tail -n 1 "$log" | cut -c 1-100
}

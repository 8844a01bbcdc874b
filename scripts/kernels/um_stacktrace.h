/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Included before arch/um/kernel/stacktrace.c of the User Mode Linux test kernel.
 *
 * To save a stack, dump_trace() asks of each word on it whether it is an address in the kernel's text, and then keeps only
 * those that its frames lead to. Most words are none, so all modules are looked through for them, with lockdep watching:
 * with KASAN, which saves the stack of each allocation, more than half of the kernel's time goes there. Here the words
 * that would be dropped are not asked about. Stacks that are printed go through dump_trace() with other operations, and
 * show all they did.
 */
#include <linux/kernel.h>
#include <linux/sched.h>
#include <linux/stacktrace.h>
#include <asm/stacktrace.h>

static const struct stacktrace_ops dump_ops;

#define __kernel_text_address(addr)                                                              \
	((ops != &dump_ops || (unsigned long)sp == bp + sizeof(long)) && __kernel_text_address(addr))

// SPDX-License-Identifier: GPL-2.0
/* Inline functions and macros which `bindgen` cannot reach. */
#include <linux/cpumask.h>
#include <linux/mm.h>
#include <linux/part_stat.h>
#include <linux/percpu.h>
#include <linux/preempt.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>

#include "helpers.h"

/* See `rust/helpers/helpers.c` of the kernel. */
#ifdef CONFIG_RUST_INLINE_HELPERS
#define __rust_helper __always_inline
#else
#define __rust_helper
#endif

__rust_helper void dm_rs_helper_bio_set_dev(struct bio *bio, struct block_device *bdev)
{
	bio_set_dev(bio, bdev);
}

__rust_helper unsigned int dm_rs_helper_memalloc_noio_save(void)
{
	return memalloc_noio_save();
}

__rust_helper void dm_rs_helper_memalloc_noio_restore(unsigned int flags)
{
	memalloc_noio_restore(flags);
}

__rust_helper void dm_rs_helper_preempt_disable(void)
{
	preempt_disable();
}

__rust_helper void dm_rs_helper_preempt_enable(void)
{
	preempt_enable();
}

__rust_helper bool dm_rs_helper_current_is_worker(void)
{
	return current->flags & PF_WQ_WORKER;
}

__rust_helper void *dm_rs_helper_raw_cpu_ptr(void *ptr)
{
	return raw_cpu_ptr((char __percpu __force *)ptr);
}

__rust_helper void *dm_rs_helper_per_cpu_ptr(void *ptr, unsigned int cpu)
{
	return per_cpu_ptr((char __percpu __force *)ptr, cpu);
}

__rust_helper bool dm_rs_helper_cpu_possible(unsigned int cpu)
{
	return cpu_possible(cpu);
}

__rust_helper void dm_rs_helper_get_file(struct file *file)
{
	get_file(file);
}

__rust_helper sector_t dm_rs_helper_bdev_nr_sectors(struct block_device *bdev)
{
	return bdev_nr_sectors(bdev);
}

__rust_helper bool dm_rs_helper_bdev_read_only(struct block_device *bdev)
{
	return bdev_read_only(bdev);
}

__rust_helper bool dm_rs_helper_bdev_nowait(struct block_device *bdev)
{
	return bdev_nowait(bdev);
}

__rust_helper struct queue_limits *dm_rs_helper_bdev_limits(struct block_device *bdev)
{
	return bdev_limits(bdev);
}

__rust_helper unsigned int dm_rs_helper_bdev_max_discard_sectors(struct block_device *bdev)
{
	return bdev_max_discard_sectors(bdev);
}

__rust_helper void dm_rs_helper_destroy_work_on_stack(struct work_struct *work)
{
	destroy_work_on_stack(work);
}

#if defined(CONFIG_PREEMPTION) && !defined(CONFIG_TASKS_RCU)
#error "synchronize_rcu_tasks() does not wait for tasks that were preempted"
#endif

__rust_helper void dm_rs_helper_synchronize_rcu_tasks(void)
{
	synchronize_rcu_tasks();
}

__rust_helper bool dm_rs_helper_rcu_read_lock_held(void)
{
	return rcu_read_lock_held();
}

__rust_helper bool dm_rs_helper_bdev_is_zoned(struct block_device *bdev)
{
	return bdev_is_zoned(bdev);
}

__rust_helper u64 dm_rs_helper_total_memory(void)
{
	return (u64)totalram_pages() << PAGE_SHIFT;
}

__rust_helper void dm_rs_helper_bdev_count_io(struct block_device *bdev, blk_opf_t opf,
					      unsigned int sectors)
{
	const int group = op_stat_group(opf & REQ_OP_MASK);

	part_stat_lock();
	part_stat_inc(bdev, ios[group]);
	part_stat_add(bdev, sectors[group], sectors);
	part_stat_unlock();
}

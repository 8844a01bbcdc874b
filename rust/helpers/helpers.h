/* SPDX-License-Identifier: GPL-2.0 */
#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/device-mapper.h>
#include <linux/fs.h>

/* Exported by the core for targets in `drivers/md`, without a public header. */
void dm_internal_suspend_noflush(struct mapped_device *md);
void dm_internal_resume(struct mapped_device *md);

void dm_rs_helper_bio_set_dev(struct bio *bio, struct block_device *bdev);
unsigned int dm_rs_helper_memalloc_noio_save(void);
void dm_rs_helper_memalloc_noio_restore(unsigned int flags);
void dm_rs_helper_preempt_disable(void);
void dm_rs_helper_preempt_enable(void);
bool dm_rs_helper_current_is_worker(void);
void *dm_rs_helper_raw_cpu_ptr(void *ptr);
void *dm_rs_helper_per_cpu_ptr(void *ptr, unsigned int cpu);
bool dm_rs_helper_cpu_possible(unsigned int cpu);
void dm_rs_helper_get_file(struct file *file);
sector_t dm_rs_helper_bdev_nr_sectors(struct block_device *bdev);
bool dm_rs_helper_bdev_read_only(struct block_device *bdev);
bool dm_rs_helper_bdev_nowait(struct block_device *bdev);
struct queue_limits *dm_rs_helper_bdev_limits(struct block_device *bdev);
unsigned int dm_rs_helper_bdev_max_discard_sectors(struct block_device *bdev);
void dm_rs_helper_destroy_work_on_stack(struct work_struct *work);
void dm_rs_helper_synchronize_rcu_tasks(void);
bool dm_rs_helper_rcu_read_lock_held(void);
bool dm_rs_helper_bdev_is_zoned(struct block_device *bdev);
u64 dm_rs_helper_total_memory(void);
void dm_rs_helper_bdev_count_io(struct block_device *bdev, blk_opf_t opf, unsigned int sectors);

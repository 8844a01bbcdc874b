// SPDX-License-Identifier: GPL-2.0

//! A few transactions, which also run in the kernel, over a few blocks in memory.

#[cfg_attr(dm_thin_kunit, kernel::macros::kunit_tests(persistent_data_space_maps))]
mod tests {
    use crate::{
        block::Validator,
        block_manager::{
            BlockManager,
            Guard, //
        },
        btree::small_tests::SmallBm,
        error::{
            Error,
            Result, //
        },
        space_map::{
            DiskSpaceMap,
            SmRoot, //
        },
        transaction::Transaction,
        transaction_manager::TransactionManager,
    };

    static VALIDATOR: Validator = Validator {
        name: "test block",
        check: |_, _| Ok(()),
        prepare: |_, _| (),
    };

    fn commit(
        bm: &SmallBm,
        tm: &mut TransactionManager,
        data: &mut DiskSpaceMap,
    ) -> Result<(SmRoot, SmRoot)> {
        data.commit(&mut tm.tx(bm))?;
        let metadata = tm.pre_commit(bm)?;
        tm.commit(bm, bm.write(0, &VALIDATOR)?)?;
        Ok((metadata, data.root()))
    }

    #[test]
    fn counts_outlive_a_commit() -> Result {
        let bm = SmallBm::new(60)?;
        let mut tm = TransactionManager::create(&bm, 0)?;
        let mut data = DiskSpaceMap::create(&mut tm.tx(&bm), 20000)?;
        data.inc(&mut tm.tx(&bm), 16000..17000)?;
        for _ in 0..4 {
            data.inc(&mut tm.tx(&bm), 16300..16400)?;
        }
        data.dec(&mut tm.tx(&bm), 16350..16400, &mut |_| ())?;
        data.set_count(&mut tm.tx(&bm), 7, 3)?;
        data.set_count(&mut tm.tx(&bm), 7, 2)?;
        assert_eq!(data.new_block(&mut tm.tx(&bm), &mut |_| true)?, 0);
        let (metadata, root) = commit(&bm, &mut tm, &mut data)?;

        let mut tm = TransactionManager::open(&bm, 0, &metadata)?;
        let mut data = DiskSpaceMap::open(&bm, &root)?;
        for (block, count) in [(0, 1), (1, 0), (7, 2), (15999, 0), (16000, 1)] {
            assert_eq!(data.get_count(&bm, block)?, count);
        }
        for (block, count) in [(16300, 5), (16349, 5), (16350, 4), (16400, 1)] {
            assert_eq!(data.get_count(&bm, block)?, count);
        }
        assert!(data.is_shared(&bm, 7)?);
        assert_eq!(data.nr_free(), 20000 - 1002);

        // The counts of all metadata blocks go back to where they were.
        let free = tm.nr_free();
        let again = commit(&bm, &mut tm, &mut data)?;
        assert!(again == (metadata, root));
        data.dec(&mut tm.tx(&bm), 16300..16350, &mut |_| ())?;
        commit(&bm, &mut tm, &mut data)?;
        assert_eq!(tm.nr_free(), free);
        Ok(())
    }

    #[test]
    fn freed_blocks_wait_for_the_commit() -> Result {
        let bm = SmallBm::new(40)?;
        let mut tm = TransactionManager::create(&bm, 0)?;
        let mut data = DiskSpaceMap::create(&mut tm.tx(&bm), 2)?;
        commit(&bm, &mut tm, &mut data)?;
        let free = tm.nr_free();
        // The commit must copy the index.
        let mut last = 0;
        while tm.nr_free() > 1 {
            let block = tm.tx(&bm).new_block(&VALIDATOR)?.location();
            assert!(block > last);
            last = block;
            tm.tx(&bm).inc(block..block + 1)?;
            assert_eq!(tm.ref_count(&bm, block)?, 2);
            tm.tx(&bm).dec(block..block + 1)?;
            tm.tx(&bm).dec(block..block + 1)?;
        }

        // All come back with the commit.
        commit(&bm, &mut tm, &mut data)?;
        assert_eq!(tm.nr_free(), free);

        for block in 0..2 {
            assert_eq!(data.new_block(&mut tm.tx(&bm), &mut |_| true)?, block);
            data.dec(&mut tm.tx(&bm), block..block + 1, &mut |_| ())?;
        }
        assert_eq!(
            data.new_block(&mut tm.tx(&bm), &mut |_| true),
            Err(Error::NoSpace)
        );
        commit(&bm, &mut tm, &mut data)?;
        assert_eq!(data.new_block(&mut tm.tx(&bm), &mut |_| true), Ok(0));
        Ok(())
    }
}

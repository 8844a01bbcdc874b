// SPDX-License-Identifier: GPL-2.0

//! A chain of more backups than the process may have files open: in a process of its own, as it changes that.

use rustix::process::{
    getrlimit,
    setrlimit,
    Resource,
    Rlimit, //
};
use thinctl::{
    repository::Repository,
    state::StateId,
    stream::{
        Changes,
        Header,
        Record,
        Writer, //
    },
};

const BLOCK: u64 = 4096;
const GENERATIONS: u64 = 400;

fn state(n: u64) -> StateId {
    StateId::new(*blake3::hash(&n.to_le_bytes()).as_bytes())
}

#[test]
fn a_chain_may_be_long() {
    let limit = getrlimit(Resource::Nofile);
    let low = Rlimit {
        current: Some(128),
        ..limit
    };
    setrlimit(Resource::Nofile, low).unwrap();
    let folder = tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap();
    let locked = Repository::create(folder.path()).unwrap().lock().unwrap();
    for n in 0..GENERATIONS {
        let header = Header {
            size: GENERATIONS * BLOCK,
            block_size: BLOCK,
            to: state(n),
            from: n.checked_sub(1).map(state),
            start: 0,
            data: BLOCK,
            name: "vg/volume".into(),
            time: 0,
        };
        locked
            .add("vol", None, |w| {
                let mut writer = Writer::new(w, &header)?;
                writer.data(n * BLOCK, &[n as u8; BLOCK as usize])?;
                writer.finish().map(drop)
            })
            .unwrap();
    }
    let mut fold = locked.restore("vol", None).unwrap();
    let mut all = Vec::new();
    while let Some(record) = fold.next().unwrap() {
        let Record::Data { offset, data } = record else {
            panic!("a discard in what starts from nothing");
        };
        assert_eq!(offset, all.len() as u64);
        all.extend(data);
    }
    assert_eq!(all.len() as u64, GENERATIONS * BLOCK);
    for (n, block) in all.chunks(BLOCK as usize).enumerate() {
        assert!(block.iter().all(|byte| *byte == n as u8), "block {n}");
    }
    let pruned = locked.prune("vol", 1, &mut |_| Ok(())).unwrap();
    assert_eq!(pruned.made_full, Some(GENERATIONS));
    assert_eq!(pruned.removed.len() as u64, GENERATIONS - 1);
}

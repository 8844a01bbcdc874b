// SPDX-License-Identifier: GPL-2.0

//! What is left to lvm2 in its pools.
//!
//! lvm2 has books of its own on the volumes of a pool, and does not look into the pool's metadata. A new volume gets the
//! highest id in the books plus one; if the pool has a volume of that id already, lvm2 takes it for the new one, with
//! all that is in it. And a volume that is deleted behind its back stays in the books. So volumes that others are to use
//! are made and deleted by lvm2 alone, and what thinctl does itself is refused before anything is done.
//!
//! thinctl makes but snapshots for itself there, by one message, `create_snap`, and deletes them by another, `delete`.
//! Their ids are of the upper half ([`is_own`]), which lvm2 does not come to; [`numbering`](crate::numbering) sees to
//! that. The pool's transaction id, which lvm2 compares with its books, is changed by neither of the two.

use crate::{
    error::{
        Error,
        Result, //
    },
    pool::Pool,
};

/// Volumes that thinctl makes for itself have ids in the upper half, where pools that others manage are empty.
pub const FIRST_OWN_ID: u32 = 1 << 23;

/// Whether volumes with this id are thinctl's own.
pub fn is_own(id: u32) -> bool {
    id >= FIRST_OWN_ID
}

/// Gives an error if lvm2 manages the pool, for what would make volume `id` of a backup or a stream.
pub fn check_makes(pool: &Pool, id: u32) -> Result {
    unknown(pool, id, |_, lv| {
        format!("{}, and write into it with --into", make(lv))
    })
}

/// Gives an error if lvm2 manages the pool, for what would make volume `id` of another one of the pool.
pub fn check_snapshots(pool: &Pool, id: u32) -> Result {
    unknown(pool, id, |_, _| "`lvcreate -s` takes snapshots".to_owned())
}

/// Gives an error if lvm2 manages the pool, for what would make volume `id` of another pool's.
pub fn check_migrates_to(pool: &Pool, id: u32) -> Result {
    unknown(pool, id, |_, lv| {
        format!(
            "{}, and `thinctl send` a snapshot to `thinctl receive --into` it",
            make(lv)
        )
    })
}

/// Gives an error if lvm2 manages the pool, for what would delete volume `id`, which somebody else has made.
pub fn check_deletes(pool: &Pool, id: u32) -> Result {
    match pool.is_of_lvm2() {
        false => Ok(()),
        true => Err(Error::Refused(format!(
            "pool {} belongs to lvm2, which would still have volume {id} in its books; leave out --delete, and delete it with \
             `lvremove`",
            pool.name
        ))),
    }
}

/// The error of a volume that lvm2 would not know of.
fn unknown(pool: &Pool, id: u32, instead: impl FnOnce(&str, &str) -> String) -> Result {
    if !pool.is_of_lvm2() {
        return Ok(());
    }
    let (group, volume) = names(&pool.name);
    let volume = volume.strip_suffix("-tpool").unwrap_or(&volume);
    Err(Error::Refused(format!(
        "pool {} belongs to lvm2, which would not know of a volume {id}, and take it for the next one that it makes with this \
         id; {}",
        pool.name,
        instead(&group, &format!("{group}/{volume}"))
    )))
}

fn make(pool: &str) -> String {
    format!("make a volume with `lvcreate -V SIZE -T {pool} -n NAME`")
}

/// The volume group and the volume in the name of a device: a hyphen that is not doubled is between them, and in the
/// group's name there is no other such one.
pub fn names(device: &str) -> (String, String) {
    let mut group = String::new();
    let mut rest = device.chars().peekable();
    while let Some(c) = rest.next() {
        if c == '-' && rest.next_if_eq(&'-').is_none() {
            break;
        }
        group.push(c);
    }
    let volume: String = rest.collect();
    (group, volume.replace("--", "-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(name: &str, uuid: Option<&str>) -> Pool {
        Pool {
            name: name.to_owned(),
            uuid: uuid.map(str::to_owned),
            device: devicemapper::Device { major: 0, minor: 0 },
            metadata: "".into(),
            data: "".into(),
            block_size: 65536,
            skips_zeroing: false,
        }
    }

    #[test]
    fn names_are_those_of_lvm2() {
        let names = |device| {
            let (group, volume) = names(device);
            format!("{group}/{volume}")
        };
        assert_eq!(names("vg-lv"), "vg/lv");
        assert_eq!(names("my--vg-a--b"), "my-vg/a-b");
        assert_eq!(names("a----b-c-tpool"), "a--b/c-tpool");
    }

    #[test]
    fn pools_of_others_are_free() {
        for uuid in [None, Some("CRYPT-LVM-1")] {
            let pool = pool("vg-pool-tpool", uuid);
            for check in [
                check_makes,
                check_snapshots,
                check_migrates_to,
                check_deletes,
            ] {
                assert!(check(&pool, 1).is_ok());
            }
        }
    }

    #[test]
    fn errors_say_what_to_do_instead() {
        let pool = pool("my--vg-pool-tpool", Some("LVM-abc-tpool"));
        let told = |check: fn(&Pool, u32) -> Result| match check(&pool, 10) {
            Err(Error::Refused(why)) => why,
            result => format!("{result:?}"),
        };
        assert!(told(check_makes).contains("-T my-vg/pool -n NAME`, and write into it with --into"));
        assert!(
            told(check_snapshots).contains("a volume 10")
                && told(check_snapshots).contains("lvcreate -s")
        );
        assert!(told(check_migrates_to).contains("receive --into"));
        assert!(
            told(check_deletes).contains("volume 10") && told(check_deletes).contains("lvremove")
        );
    }
}

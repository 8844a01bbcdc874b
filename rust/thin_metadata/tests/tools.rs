// SPDX-License-Identifier: GPL-2.0

//! The installed thin-provisioning-tools, as judges and as another writer of the format.

use std::{
    collections::BTreeMap,
    path::{
        Path,
        PathBuf, //
    },
    process::Command,
    sync::atomic::{
        AtomicU64,
        Ordering, //
    },
};

use super::model::{
    Device,
    Pool, //
};

/// A file with an image, removed when dropped.
pub struct Image(PathBuf);

impl Image {
    /// A file with `content`, in memory where that is possible.
    pub fn new(content: &[u8]) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let memory = Path::new("/dev/shm");
        let folder = match memory.is_dir() {
            true => memory.to_path_buf(),
            false => std::env::temp_dir(),
        };
        let path = folder.join(format!(
            "thin_metadata.{}.{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        ));
        std::fs::write(&path, content).expect("temporary file");
        Self(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Runs a tool and gives its standard output. A tool that is not installed fails the test.
fn run(command: &mut Command) -> Result<String, String> {
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?} cannot run, install thin-provisioning-tools: {e}"));
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(out);
    }
    let err = String::from_utf8_lossy(&output.stderr);
    Err(format!("{command:?}: {}\n{out}{err}", output.status))
}

fn tool(name: &str) -> Command {
    let sbin = Path::new("/usr/sbin").join(name);
    if sbin.exists() {
        Command::new(sbin)
    } else {
        Command::new(name)
    }
}

/// What `thin_check` says about an image.
pub fn check(image: &[u8]) -> Result<(), String> {
    let file = Image::new(image);
    run(tool("thin_check").arg(file.path())).map(drop)
}

/// What `thin_dump` finds in an image; with `snap` in the metadata snapshot there.
pub fn dump(image: &[u8], snap: Option<u64>) -> Pool {
    let file = Image::new(image);
    let mut command = tool("thin_dump");
    if let Some(block) = snap {
        command.arg(format!("-m{block}"));
    }
    parse(&run(command.arg(file.path())).expect("thin_dump"))
}

/// An image of `nr_blocks` blocks that `thin_restore` makes.
pub fn restore(pool: &Pool, data_block_size: u32, nr_blocks: u64) -> Vec<u8> {
    let xml = Image::new(write(pool, data_block_size).as_bytes());
    let file = Image::new(&vec![0; nr_blocks as usize * 4096]);
    run(tool("thin_restore")
        .arg("-i")
        .arg(xml.path())
        .arg("-o")
        .arg(file.path()))
    .expect("thin_restore");
    std::fs::read(file.path()).expect("temporary file")
}

/// The attributes of an XML element.
fn attributes(line: &str) -> BTreeMap<&str, u64> {
    line.split_whitespace()
        .filter_map(|word| {
            let (name, value) = word.split_once('=')?;
            let value = value.split('"').nth(1)?;
            Some((name, value.parse().ok()?))
        })
        .collect()
}

fn parse(xml: &str) -> Pool {
    let mut pool = Pool::default();
    let mut current = None;
    for line in xml.lines().map(str::trim) {
        let a = attributes(line);
        if line.starts_with("<superblock") {
            pool.time = a["time"] as u32;
            pool.transaction_id = a["transaction"];
            pool.nr_data = a["nr_data_blocks"];
        } else if line.starts_with("<device") {
            let device = Device {
                mapped_blocks: a["mapped_blocks"],
                transaction_id: a["transaction"],
                creation_time: a["creation_time"] as u32,
                snapshotted_time: a["snap_time"] as u32,
                mappings: BTreeMap::new(),
            };
            assert!(pool.devices.insert(a["dev_id"], device).is_none());
            current = Some(a["dev_id"]);
        } else if line.starts_with("<single_mapping") || line.starts_with("<range_mapping") {
            let (begin, block, length) = if line.starts_with("<single") {
                (a["origin_block"], a["data_block"], 1)
            } else {
                (a["origin_begin"], a["data_begin"], a["length"])
            };
            let id = current.expect("a mapping is in a device");
            let device = pool.devices.get_mut(&id).expect("the device is known");
            for i in 0..length {
                device
                    .mappings
                    .insert(begin + i, (block + i, a["time"] as u32));
            }
        }
    }
    pool
}

fn write(pool: &Pool, data_block_size: u32) -> String {
    let mut xml = format!(
        "<superblock uuid=\"\" time=\"{}\" transaction=\"{}\" version=\"2\" \
         data_block_size=\"{data_block_size}\" nr_data_blocks=\"{}\">\n",
        pool.time, pool.transaction_id, pool.nr_data
    );
    for (id, device) in &pool.devices {
        xml += &format!(
            "<device dev_id=\"{id}\" mapped_blocks=\"{}\" transaction=\"{}\" \
             creation_time=\"{}\" snap_time=\"{}\">\n",
            device.mapped_blocks,
            device.transaction_id,
            device.creation_time,
            device.snapshotted_time
        );
        for (virtual_block, (block, time)) in &device.mappings {
            xml += &format!(
                "<single_mapping origin_block=\"{virtual_block}\" data_block=\"{block}\" \
                 time=\"{time}\"/>\n"
            );
        }
        xml += "</device>\n";
    }
    xml + "</superblock>\n"
}

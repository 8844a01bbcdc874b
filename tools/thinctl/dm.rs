// SPDX-License-Identifier: GPL-2.0

//! Device-mapper: devices, tables, messages.

use std::{
    fs, io,
    path::PathBuf,
    thread,
    time::{
        Duration,
        Instant, //
    },
};

use devicemapper::{
    DevId,
    Device,
    DmCookie,
    DmError,
    DmFlags,
    DmName,
    DmOptions,
    DmUuid,
    DM, //
};
use rustix::{
    io::Errno,
    process::geteuid, //
};

use crate::{
    cut,
    error::{
        Error,
        Result, //
    },
    signals,
};

/// One line of a table or of a status.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    /// Where it begins, in sectors.
    pub start: u64,
    /// How long it is, in sectors.
    pub sectors: u64,
    /// The type of the target.
    pub target: String,
    /// The rest of the line.
    pub words: String,
}

/// What is known of a device.
#[derive(Clone, Debug)]
pub struct Info {
    /// Its name.
    pub name: String,
    /// Its UUID, if it has one.
    pub uuid: Option<String>,
    /// Its number.
    pub device: Device,
    /// Whether it is suspended.
    pub suspended: bool,
    /// Whether a table is loaded that it gets when it is resumed.
    pub has_other_table: bool,
    /// Whether it cannot be written to.
    pub read_only: bool,
    /// How often it is open.
    pub open_count: i32,
}

impl Info {
    /// The device's node. Those in `/dev/mapper` need udev; this one is always there.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/dev/dm-{}", self.device.minor))
    }
}

/// How long whoever looks at a new device may have it open.
const LOOKED_AT: Duration = Duration::from_secs(1);

/// The way to device-mapper. It waits for nobody but the kernel: udev, which may be slow, stopped or not there, is only told
/// what its rules are to do.
pub struct Dm(DM);

impl Dm {
    /// Opens device-mapper's control device.
    pub fn new() -> Result<Self> {
        let what = match geteuid().is_root() {
            true => "device-mapper (is dm_mod loaded?)",
            false => "device-mapper (thinctl must be run as root)",
        };
        DM::new().map(Self).map_err(error(what))
    }

    /// The names and numbers of all devices.
    pub fn list(&self) -> Result<Vec<(String, Device)>> {
        let devices = self.0.list_devices().map_err(error("list of devices"))?;
        Ok(devices
            .into_iter()
            .map(|(name, device, _)| (name.to_string(), device))
            .collect())
    }

    /// The name of a device; `None` if there is none of this number.
    pub fn name(&self, number: Device) -> Result<Option<String>> {
        // A list of all can be had only if all have names that this program can work with.
        if let Ok(name) = fs::read_to_string(format!("/sys/dev/block/{number}/dm/name")) {
            let name = name.trim_end_matches('\n');
            DmName::new(name).map_err(error(name))?;
            return Ok(Some(name.to_owned()));
        }
        let mut devices = self.list()?.into_iter();
        Ok(devices
            .find(|(_, device)| *device == number)
            .map(|(name, _)| name))
    }

    /// The numbers of the devices that a device lies on.
    pub fn below(&self, name: &str) -> Result<Vec<Device>> {
        self.0
            .table_deps(&id(name)?, DmOptions::default())
            .map_err(error(name))
    }

    /// What is known of a device; `None` if there is none of this name.
    pub fn info(&self, name: &str) -> Result<Option<Info>> {
        let Ok(dm_name) = DmName::new(name) else {
            return Ok(None);
        };
        match self.0.device_info(&DevId::Name(dm_name)) {
            Ok(info) => Ok(Some(Info {
                name: name.to_owned(),
                uuid: info.uuid().map(|uuid| uuid.to_string()),
                device: info.device(),
                suspended: info.flags().contains(DmFlags::DM_SUSPEND),
                has_other_table: info.flags().contains(DmFlags::DM_INACTIVE_PRESENT),
                read_only: info.flags().contains(DmFlags::DM_READONLY),
                open_count: info.open_count(),
            })),
            Err(e) => match error(name)(e) {
                e if e.errno() == Some(Errno::NXIO) => Ok(None),
                e => Err(e),
            },
        }
    }

    /// The table that a device works with.
    pub fn table(&self, name: &str) -> Result<Vec<Line>> {
        self.lines(name, DmFlags::DM_STATUS_TABLE)
    }

    /// The table that was loaded for a device, which it does not work with yet.
    pub fn other_table(&self, name: &str) -> Result<Vec<Line>> {
        self.lines(
            name,
            DmFlags::DM_STATUS_TABLE | DmFlags::DM_QUERY_INACTIVE_TABLE,
        )
    }

    /// The status of a device. A pool is not asked to commit for it.
    pub fn status(&self, name: &str) -> Result<Vec<Line>> {
        self.lines(name, DmFlags::DM_NOFLUSH)
    }

    fn lines(&self, name: &str, flags: DmFlags) -> Result<Vec<Line>> {
        let (_, lines) = self
            .0
            .table_status(&id(name)?, DmOptions::default().set_flags(flags))
            .map_err(error(name))?;
        Ok(lines
            .into_iter()
            .map(|(start, sectors, target, words)| Line {
                start,
                sectors,
                target,
                words,
            })
            .collect())
    }

    /// Sends a message to the target at the beginning of a device.
    pub fn message(&self, name: &str, message: &str) -> Result {
        cut::point();
        self.0
            .target_msg(&id(name)?, None, message)
            .map_err(error(&format!("{name}: message \"{message}\"")))?;
        Ok(())
    }

    /// Makes a device with one target, for this program's own use. It is not left behind if it cannot be made whole.
    pub fn create(&self, name: &str, line: &Line, read_only: bool) -> Result<Info> {
        let uuid = format!("THINCTL-{name}");
        let dm_uuid = DmUuid::new(&uuid).map_err(error(name))?;
        let dm_name = DmName::new(name).map_err(error(name))?;
        let flags = if read_only {
            DmFlags::DM_READONLY
        } else {
            DmFlags::empty()
        };
        let options = private().set_flags(flags);
        cut::point();
        self.0
            .device_create(dm_name, Some(dm_uuid), options)
            .map_err(error(&format!("device {name}")))?;
        let made = self
            .load(name, line, read_only)
            .and_then(|()| self.resume(name))
            .and_then(|()| self.info(name))
            .and_then(|info| info.ok_or_else(|| Error::NotFound(format!("no device {name}"))));
        if made.is_err() {
            // The first error is the one that tells.
            let _ = self.remove(name);
        }
        made
    }

    /// Loads a table of one line, which the next [`resume`](Self::resume) makes the device's.
    pub fn load(&self, name: &str, line: &Line, read_only: bool) -> Result {
        let flags = if read_only {
            DmFlags::DM_READONLY
        } else {
            DmFlags::empty()
        };
        let table = [(
            line.start,
            line.sectors,
            line.target.clone(),
            line.words.clone(),
        )];
        cut::point();
        self.0
            .table_load(&id(name)?, &table, DmOptions::default().set_flags(flags))
            .map_err(error(&format!(
                "{name}: table \"{} {}\"",
                line.target, line.words
            )))?;
        Ok(())
    }

    /// Forgets a table that was loaded and not made the device's.
    pub fn clear(&self, name: &str) -> Result {
        cut::point();
        self.0.table_clear(&id(name)?).map_err(error(name))?;
        Ok(())
    }

    /// Suspends a device, with the file system on it, after all its I/O.
    pub fn suspend(&self, info: &Info) -> Result<Device> {
        let name = &info.name;
        let uuid = info.uuid.as_deref().map(DmUuid::new).transpose();
        let id = match uuid.map_err(error(name))? {
            Some(uuid) => DevId::Uuid(uuid),
            None => id(name)?,
        };
        cut::point();
        loop {
            let options = DmOptions::default().set_flags(DmFlags::DM_SUSPEND);
            let suspended = self.0.device_suspend(&id, options);
            match suspended.map_err(error(&format!("{name}: suspend"))) {
                // A signal, which may ask to stop: that is seen a moment later.
                Err(e) if e.errno() == Some(Errno::INTR) => {
                    thread::sleep(Duration::from_millis(20));
                    signals::check()?;
                }
                result => return Ok(result?.device()),
            }
        }
    }

    /// Resumes a device.
    pub fn resume(&self, name: &str) -> Result {
        cut::point();
        self.0
            .device_suspend(&id(name)?, private())
            .map_err(error(&format!("{name}: resume")))?;
        Ok(())
    }

    /// Resumes a device that others use: udev's rules for it run as whoever has made it wants them to.
    ///
    /// It waits while the pool is suspended, and no signal ends that: whoever uses the device would wait for ever. Gives the
    /// number of the device, as the name may go to another one at any time.
    pub fn resume_public(&self, name: &str) -> Result<Device> {
        cut::point();
        loop {
            let resumed = self.0.device_suspend(&id(name)?, DmOptions::default());
            match resumed.map_err(error(&format!("{name}: resume"))) {
                Err(e) if e.errno() == Some(Errno::INTR) => {}
                result => return Ok(result?.device()),
            }
        }
    }

    /// As [`resume_public`](Self::resume_public), whatever the device's name is by now. That it is gone or runs is no error; it
    /// is gone if the number is that of one with another UUID.
    pub fn resume_number(&self, number: Device, uuid: Option<&str>) -> Result {
        while let Some(name) = self.name(number)? {
            // It may be renamed just now.
            let Some(info) = self.info(&name)?.filter(|info| info.device == number) else {
                continue;
            };
            if !info.suspended || uuid.is_some_and(|uuid| info.uuid.as_deref() != Some(uuid)) {
                break;
            }
            match self.resume_public(&name) {
                Ok(resumed) if resumed == number => break,
                // The name went to another device, or to none.
                Ok(_) => {}
                Err(e) if e.errno() == Some(Errno::NXIO) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Removes a device that nobody has open.
    pub fn remove(&self, name: &str) -> Result {
        cut::point();
        let begun = Instant::now();
        loop {
            let removed = self
                .0
                .device_remove(&id(name)?, private())
                .map_err(error(&format!("{name}: remove")));
            match removed {
                // What looks at new devices may be at it.
                Err(e) if e.errno() == Some(Errno::BUSY) && begun.elapsed() < LOOKED_AT => {
                    thread::sleep(Duration::from_millis(20));
                }
                result => return result.map(drop),
            }
        }
    }

    /// Removes a device as soon as nobody has it open.
    pub fn remove_later(&self, name: &str) -> Result {
        let options = private().set_flags(DmFlags::DM_DEFERRED_REMOVE);
        cut::point();
        self.0
            .device_remove(&id(name)?, options)
            .map_err(error(&format!("{name}: remove")))?;
        Ok(())
    }
}

/// The options of a device that is this program's own: udev's rules leave it alone.
fn private() -> DmOptions {
    DmOptions::default().set_cookie(
        DmCookie::DM_UDEV_PRIMARY_SOURCE_FLAG
            | DmCookie::DM_UDEV_DISABLE_SUBSYSTEM_RULES_FLAG
            | DmCookie::DM_UDEV_DISABLE_DISK_RULES_FLAG
            | DmCookie::DM_UDEV_DISABLE_OTHER_RULES_FLAG,
    )
}

fn id(name: &str) -> Result<DevId<'_>> {
    DmName::new(name).map(DevId::Name).map_err(error(name))
}

/// For `map_err`: what was asked, and the errno if there is one.
fn error(what: &str) -> impl FnOnce(DmError) -> Error + '_ {
    move |e| {
        let e = match e {
            DmError::Core(devicemapper::errors::Error::Ioctl(_, _, _, errno)) => {
                io::Error::from_raw_os_error(*errno as i32)
            }
            e => io::Error::other(e.to_string()),
        };
        Error::Io(what.to_owned(), e)
    }
}

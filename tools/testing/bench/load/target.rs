// SPDX-License-Identifier: GPL-2.0

//! The `load` target.

use core::fmt::{
    self,
    Write as _, //
};

use dm::{
    Args,
    Bio,
    Ctr,
    Dev,
    Features,
    Map,
    Message,
    Mode,
    Output,
    StatusFlags,
    StatusKind,
    Target,
    Ti, //
};
use kernel::{
    prelude::*,
    str::CStr, //
};

use crate::{
    message,
    DmLoad, //
};

/// A table of the target: the device that loads are run on.
///
/// A message keeps the table, so it cannot go away during a run: whoever removes or replaces it waits for that.
pub(crate) struct LoadTarget {
    pub(crate) dev: Dev,
    pub(crate) ti: Ti,
}

#[vtable]
impl Target for LoadTarget {
    const NAME: &'static CStr = c"load";
    const VERSION: [u32; 3] = [1, 0, 0];
    const FEATURES: Features = Features::NONE;
    type Module = DmLoad;
    type PerBio = ();

    fn ctr(ctr: &mut Ctr<'_>, args: Args<'_>) -> Result<Pin<KBox<Self>>> {
        let (1, Some(path)) = (args.len(), args.get(0)) else {
            return Err(ctr.error(c"Invalid argument count", EINVAL));
        };
        let dev = ctr
            .get_device(path, Mode::READ_WRITE)
            .map_err(|e| ctr.error(c"Error opening device", e))?;
        let ti = ctr.handle().clone();
        Ok(KBox::pin(Self { dev, ti }, GFP_KERNEL)?)
    }

    fn map(&self, bio: Bio<()>) -> Map<()> {
        Map::Kill(bio)
    }

    fn message(&self, msg: &mut Message<'_>) -> Result {
        message::handle(self, msg)
    }

    fn status(&self, kind: StatusKind, _flags: StatusFlags, out: &mut Output<'_>) -> fmt::Result {
        match kind {
            StatusKind::Table => write!(out, "{}", self.dev.number()),
            StatusKind::Info | StatusKind::Ima => Ok(()),
        }
    }
}

//! SVID and key across a restart of the process: one file, mode 0600, in a directory that lies in memory.

use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};

use super::CaClientConfig;
use crate::bundle::TrustBundle;
use crate::error::Error;
use crate::file;
use crate::identity::check;
use crate::spiffe::SpiffeId;
use crate::svid::Svid;

const FILE: &str = "svid.pem";
/// `RAMFS_MAGIC` of linux/magic.h.
const RAMFS: i64 = 0x8584_58f6;

pub(super) struct StateDir(PathBuf);

impl StateDir {
    pub(super) fn open(config: &CaClientConfig) -> Result<Option<Self>, Error> {
        let Some(dir) = &config.state_dir else {
            return Ok(None);
        };
        if config.require_memory {
            require_memory(dir)?;
        }
        Ok(Some(Self(dir.join(FILE))))
    }

    /// The SVID there, if it is ours, valid and trusted. Anything else is discarded.
    pub(super) fn load(&self, id: &SpiffeId, bundle: &TrustBundle) -> Option<Svid> {
        if !self.0.exists() {
            return None;
        }
        let read = || -> Result<Svid, Error> {
            let svid = Svid::from_pem(&file::read_secret(&self.0)?)?;
            if svid.id() != id {
                return Err(Error::OtherIdentity {
                    want: id.clone(),
                    got: svid.id().clone(),
                });
            }
            check(&svid, bundle)?;
            Ok(svid)
        };
        read()
            .inspect_err(|e| {
                tracing::warn!(error = e.full(), "saved certificate discarded");
                if let Err(e) = std::fs::remove_file(&self.0) {
                    tracing::warn!(error = %e, "saved certificate not removed");
                }
            })
            .ok()
    }

    pub(super) fn save(&self, svid: &Svid) -> Result<(), Error> {
        file::write_secret(&self.0, svid.to_pem().as_bytes())
    }
}

/// Makes sure that a directory lies in memory, so that a private key in it never reaches a disk.
///
/// # Errors
/// If it does not, or is not there.
pub fn require_memory(dir: &Path) -> Result<(), Error> {
    let kind = match statfs(dir) {
        Ok(stat) => stat.filesystem_type(),
        Err(Errno::ENOENT) => return Err(Error::NotInMemory { path: dir.into() }),
        Err(e) => return Err(Error::file(dir, e.into())),
    };
    if kind == TMPFS_MAGIC || kind == FsType(RAMFS) {
        return Ok(());
    }
    Err(Error::NotInMemory { path: dir.into() })
}

//! Files with secrets: owner only, all or nothing.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use zeroize::Zeroizing;

use crate::error::Error;

/// Writes a file of mode 0600 by way of a temporary neighbour.
pub(crate) fn write_secret(path: &Path, content: &[u8]) -> Result<(), Error> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    let temporary = path.with_file_name(name);
    let write = || -> io::Result<()> {
        // Left over from a crash, perhaps with other permissions.
        match fs::remove_file(&temporary) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|e| Error::file(path, e))
}

/// Reads a secret text; refuses one that others can read.
pub(crate) fn read_secret(path: &Path) -> Result<Zeroizing<String>, Error> {
    let read = || -> io::Result<Zeroizing<String>> {
        let mode = fs::metadata(path)?.permissions().mode();
        if mode & 0o077 != 0 {
            let reason = format!(
                "mode {:04o}: a private key must have mode 0600",
                mode & 0o7777
            );
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
        }
        fs::read_to_string(path).map(Zeroizing::new)
    };
    read().map_err(|e| Error::file(path, e))
}

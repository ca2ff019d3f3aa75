//! The set of files: chain, key and roots, changed together or not at all.
//!
//! As kubelet writes volumes: each state of the set is a directory of its own, `..data` is a link to the current one, and
//! the names that readers open are links through `..data`. Replacing that one link replaces everything, in one event of a
//! watched directory, so nobody finds a chain beside another chain's key. The directory lies in memory.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::unistd::{Gid, fchown};
use tulle_identity::{Current, require_memory};
use tulle_runtime::names::agent;

/// The link that is replaced.
const DATA: &str = "..data";
/// What it is replaced by, for a moment.
const NEW: &str = "..new";
/// How the directories begin that it leads to.
const GENERATION: &str = "..";

/// The set could not be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FilesError {
    #[error(transparent)]
    Place(#[from] tulle_identity::Error),
    #[error("{}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "{}: cannot give it to group {gid}: the agent must be a member (fsGroup or supplementalGroups of the pod)",
        path.display()
    )]
    Group {
        path: PathBuf,
        gid: u32,
        #[source]
        source: io::Error,
    },
}

/// One file of the set.
struct File<'a> {
    name: &'a str,
    content: &'a [u8],
    secret: bool,
}

/// The directory with the set.
#[derive(Clone, Debug)]
pub(crate) struct CredentialFiles {
    dir: PathBuf,
    group: Option<u32>,
    /// Files that go with every set: name and content.
    extra: Vec<(&'static str, String)>,
}

impl CredentialFiles {
    /// A set in `dir`, which is made if only it is missing, and refused if it does not lie in memory.
    pub(crate) fn open(
        dir: &Path,
        group: Option<u32>,
        extra: Vec<(&'static str, String)>,
    ) -> Result<Self, FilesError> {
        if !dir.exists() {
            // Asked before it is made: nothing is left behind on a disk.
            require_memory(dir.parent().unwrap_or(dir))?;
            DirBuilder::new()
                .mode(0o755)
                .create(dir)
                .map_err(|source| file_error(dir, source))?;
        }
        require_memory(dir)?;
        Ok(Self {
            dir: dir.to_owned(),
            group,
            extra,
        })
    }

    /// Where a file of the set is.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Replaces the set by what an identity is now.
    pub(crate) fn write(&self, current: &Current) -> Result<(), FilesError> {
        let (chain, key, roots) = (
            current.svid().chain_pem(),
            current.svid().key().to_pem(),
            current.bundle().to_pem(),
        );
        let public = |name, content| File {
            name,
            content,
            secret: false,
        };
        let mut files = vec![
            public(agent::CERT, chain.as_bytes()),
            File {
                secret: true,
                ..public(agent::KEY, key.as_bytes())
            },
            public(agent::ROOTS, roots.as_bytes()),
        ];
        files.extend(
            self.extra
                .iter()
                .map(|(name, content)| public(name, content.as_bytes())),
        );
        let generation = self.make_generation(&files)?;
        self.replace_link(DATA, Path::new(&generation))?;
        for file in &files {
            let target = Path::new(DATA).join(file.name);
            if fs::read_link(self.path(file.name)).ok().as_ref() != Some(&target) {
                self.replace_link(file.name, &target)?;
            }
        }
        self.remove_others(&generation)
    }

    /// A new directory with the files, which nobody looks into yet. Returns its name.
    fn make_generation(&self, files: &[File<'_>]) -> Result<String, FilesError> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let name = format!("{GENERATION}{}", now.as_nanos());
        let directory = self.path(&name);
        DirBuilder::new()
            .mode(0o755)
            .create(&directory)
            .map_err(|source| file_error(&directory, source))?;
        for file in files {
            self.make_file(&directory.join(file.name), file)?;
        }
        Ok(name)
    }

    fn make_file(&self, path: &Path, file: &File<'_>) -> Result<(), FilesError> {
        let make = || -> io::Result<fs::File> {
            let mut made = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(if file.secret { 0o600 } else { 0o644 })
                .open(path)?;
            made.write_all(file.content)?;
            Ok(made)
        };
        let made = make().map_err(|source| file_error(path, source))?;
        if let (true, Some(gid)) = (file.secret, self.group) {
            fchown(&made, None, Some(Gid::from_raw(gid)))
                .map_err(io::Error::from)
                .and_then(|()| made.set_permissions(fs::Permissions::from_mode(0o640)))
                .map_err(|source| FilesError::Group {
                    path: path.to_owned(),
                    gid,
                    source,
                })?;
        }
        Ok(())
    }

    fn replace_link(&self, name: &str, target: &Path) -> Result<(), FilesError> {
        let (link, new) = (self.path(name), self.path(NEW));
        let replace = || {
            match fs::remove_file(&new) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            symlink(target, &new)?;
            fs::rename(&new, &link)
        };
        replace().map_err(|source| file_error(&link, source))
    }

    /// Removes older sets, and what a crash has left.
    fn remove_others(&self, current: &str) -> Result<(), FilesError> {
        let list = fs::read_dir(&self.dir).map_err(|source| file_error(&self.dir, source))?;
        for entry in list.filter_map(Result::ok) {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_directory && name.starts_with(GENERATION) && name != current {
                let path = entry.path();
                fs::remove_dir_all(&path).map_err(|source| file_error(&path, source))?;
            }
        }
        Ok(())
    }
}

/// Writes a file that is no secret, all or nothing.
pub(crate) fn write_public(path: &Path, content: &[u8]) -> Result<(), FilesError> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    let temporary = path.with_file_name(name);
    fs::write(&temporary, content)
        .and_then(|()| fs::rename(&temporary, path))
        .map_err(|source| file_error(path, source))
}

pub(crate) fn file_error(path: &Path, source: io::Error) -> FilesError {
    FilesError::File {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests;

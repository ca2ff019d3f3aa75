//! The CA's memory: one file with its roots, readable by nobody else, replaced as a whole.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::CaError;
use super::roots::Roots;

const FILE: &str = "ca.json";

/// Where the roots are kept.
#[derive(Debug)]
pub(crate) struct StateFile {
    dir: PathBuf,
    path: PathBuf,
}

impl StateFile {
    /// The file in `dir`, which is made if it is missing.
    pub(crate) fn open(dir: &Path) -> Result<Self, CaError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|source| error(dir, source))?;
        Ok(Self {
            dir: dir.to_owned(),
            path: dir.join(FILE),
        })
    }

    /// What people call it.
    pub(crate) fn place(&self) -> String {
        self.path.display().to_string()
    }

    /// What was saved, or `None` if nothing ever was.
    pub(crate) fn load(&self) -> Result<Option<Roots>, CaError> {
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(problem) if problem.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(error(&self.path, source)),
        };
        let mode = file
            .metadata()
            .map_err(|source| error(&self.path, source))?
            .mode()
            & 0o777;
        if mode & 0o077 != 0 {
            return Err(CaError::Exposed {
                path: self.path.clone(),
                mode,
            });
        }
        let broken = |reason: String| CaError::Broken {
            place: self.place(),
            reason,
        };
        let text = io::read_to_string(&mut file).map_err(|source| error(&self.path, source))?;
        Roots::read(&text).map(Some).map_err(broken)
    }

    /// Replaces what is saved; after a crash there is either the old or the new state.
    pub(crate) fn save(&self, roots: &Roots) -> Result<(), CaError> {
        let text = serde_json::to_vec_pretty(roots).expect("plain data is always JSON");
        replace(&self.path, &text, 0o600).map_err(|source| error(&self.path, source))?;
        let dir = File::open(&self.dir).and_then(|dir| dir.sync_all());
        dir.map_err(|source| error(&self.dir, source))
    }
}

/// Puts a file in place as a whole, by a temporary one beside it.
pub(crate) fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidFilename))?;
    let temporary = path.with_file_name(format!(".{}.new", name.display()));
    match fs::remove_file(&temporary) {
        Err(problem) if problem.kind() != io::ErrorKind::NotFound => return Err(problem),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

fn error(path: &Path, source: io::Error) -> CaError {
    CaError::State {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::roots::RootPem;
    use super::*;

    fn roots() -> Roots {
        Roots::new(RootPem {
            certificate: "c".to_owned(),
            secret: "s".to_owned(),
            provided: false,
        })
    }

    #[test]
    fn what_is_saved_is_loaded_and_nobody_else_can_read_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = StateFile::open(&dir.path().join("new")).expect("it can be made");
        assert_eq!(file.load().expect("nothing is no error"), None);
        file.save(&roots()).expect("writable");
        file.save(&roots()).expect("twice");
        assert_eq!(file.load().expect("readable"), Some(roots()));
        assert_eq!(
            fs::metadata(&file.path).expect("it exists").mode() & 0o777,
            0o600
        );
        assert_eq!(
            fs::metadata(dir.path().join("new"))
                .expect("it exists")
                .mode()
                & 0o777,
            0o700
        );
    }

    #[test]
    fn keys_that_others_can_read_are_refused_with_the_remedy() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = StateFile::open(dir.path()).expect("it exists");
        file.save(&roots()).expect("writable");
        fs::set_permissions(&file.path, fs::Permissions::from_mode(0o640)).expect("ours");
        let error = file.load().expect_err("exposed").to_string();
        assert!(
            error.contains("chmod 600") && error.contains("ca.json"),
            "{error}"
        );
    }

    #[test]
    fn garbage_is_refused_by_name_and_not_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = StateFile::open(dir.path()).expect("it exists");
        for garbage in [
            "",
            "{",
            "{\"roots\": [], \"stage\": \"steady\", \"longest_leaf\": 0}",
        ] {
            replace(&file.path, garbage.as_bytes(), 0o600).expect("writable");
            let error = file.load().expect_err("garbage").to_string();
            assert!(error.contains("ca.json"), "{error}");
            assert_eq!(
                fs::read_to_string(&file.path).expect("still there"),
                garbage
            );
        }
    }
}

//! Files that others watch: one object a file, written under a temporary name and renamed into place.
//!
//! Only what changed is written, so that a watcher has as much work as there is news.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{Error, ObjectKey};

/// Writes a file so that a reader sees either the old content or the new.
pub(crate) fn write_atomically(path: &Path, content: &[u8]) -> Result<(), Error> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.new"));
    fs::write(&temporary, content)
        .and_then(|()| fs::rename(&temporary, path))
        .map_err(Error::io(format!("write {}", path.display())))
}

/// The directory of objects that the control plane watches beside the user's manifests.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    written: HashMap<PathBuf, Value>,
}

impl StateDir {
    pub(crate) fn create(path: PathBuf) -> Result<Self, Error> {
        fs::create_dir_all(&path).map_err(Error::io(format!("create {}", path.display())))?;
        Ok(Self {
            path,
            written: HashMap::new(),
        })
    }

    /// Writes the object unless it is there already.
    pub(crate) fn put(&mut self, kind: &str, key: &ObjectKey, object: Value) -> Result<(), Error> {
        let path = self.file(kind, key);
        if self.written.get(&path) == Some(&object) {
            return Ok(());
        }
        write_atomically(&path, format!("{object:#}\n").as_bytes())?;
        self.written.insert(path, object);
        Ok(())
    }

    /// Removes the object if it is there.
    pub(crate) fn remove(&mut self, kind: &str, key: &ObjectKey) -> Result<(), Error> {
        let path = self.file(kind, key);
        if self.written.remove(&path).is_none() {
            return Ok(());
        }
        fs::remove_file(&path).map_err(Error::io(format!("remove {}", path.display())))
    }

    fn file(&self, kind: &str, key: &ObjectKey) -> PathBuf {
        self.path.join(format!(
            "{}_{}_{}.json",
            kind.to_lowercase(),
            key.namespace,
            key.name
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use serde_json::json;

    use super::*;

    #[test]
    fn an_object_is_written_once_per_change_and_removed_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut state = StateDir::create(directory.path().join("state")).expect("created");
        let key = ObjectKey::new("shop", "web");
        let file = directory.path().join("state/service_shop_web.json");
        let inode = || fs::metadata(&file).expect("written").ino();
        state
            .put("Service", &key, json!({"a": 1}))
            .expect("written");
        let first = inode();
        state
            .put("Service", &key, json!({"a": 1}))
            .expect("unchanged");
        assert_eq!(inode(), first);
        state
            .put("Service", &key, json!({"a": 2}))
            .expect("written");
        assert_ne!(inode(), first);
        state.remove("Service", &key).expect("removed");
        state.remove("Service", &key).expect("nothing to do");
        assert_eq!(
            fs::read_dir(directory.path().join("state"))
                .expect("there")
                .count(),
            0
        );
    }
}

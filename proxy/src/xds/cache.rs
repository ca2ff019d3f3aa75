//! The last good config on a memory-backed volume, so that a restart does not need the control plane.
//!
//! The file holds what the control plane sent, one response a type, each behind its length. Reading it back is feeding
//! it through the same decoders as the wire, so whatever does not decode is left out. It is written whole under another
//! name and renamed, readable by its owner only.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use tulle_xds_proto::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use tulle_xds_proto::prost::Message;

const FILE: &str = "config.pb";
/// Format, in the first bytes; a file of another one is not read.
const MAGIC: &[u8] = b"tulle-config-1\n";
/// A file larger than this was not written here.
const MAX_FILE: u64 = 256 * 1024 * 1024;

/// Where the last good config lies.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    path: PathBuf,
    node: String,
}

impl Cache {
    /// In this directory, for this node only.
    pub(super) fn new(directory: &Path, node: &str) -> Self {
        Self {
            path: directory.join(FILE),
            node: node.to_owned(),
        }
    }

    /// Saves responses.
    pub(super) fn save(&self, responses: Vec<DeltaDiscoveryResponse>) -> io::Result<()> {
        let bytes = self.format(responses)?;
        let temporary = self.path.with_extension("tmp");
        let written = write(&temporary, &bytes).and_then(|()| fs::rename(&temporary, &self.path));
        if written.is_err() {
            // A part of it would only take the room that is lacking; that this fails too changes nothing.
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    /// What was saved; nothing if there is no file, or it is another node's.
    pub(super) fn load(&self) -> io::Result<Vec<DeltaDiscoveryResponse>> {
        let bytes = match fs::metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
            Ok(metadata) if metadata.len() > MAX_FILE => {
                return Err(io::Error::new(
                    io::ErrorKind::FileTooLarge,
                    "it is too large",
                ));
            }
            Ok(_) => fs::read(&self.path)?,
        };
        self.parse(&bytes)
    }

    pub(super) fn format(&self, responses: Vec<DeltaDiscoveryResponse>) -> io::Result<Vec<u8>> {
        let mut bytes = MAGIC.to_vec();
        for mut response in responses {
            response.system_version_info.clone_from(&self.node);
            response
                .encode_length_delimited(&mut bytes)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
        Ok(bytes)
    }

    pub(super) fn parse(&self, bytes: &[u8]) -> io::Result<Vec<DeltaDiscoveryResponse>> {
        let invalid = |reason| io::Error::new(io::ErrorKind::InvalidData, reason);
        let mut rest = bytes
            .strip_prefix(MAGIC)
            .ok_or_else(|| invalid("it is of another format"))?;
        let mut responses = Vec::new();
        while !rest.is_empty() {
            let response = DeltaDiscoveryResponse::decode_length_delimited(&mut rest)
                .map_err(|_| invalid("it is damaged"))?;
            if response.system_version_info != self.node {
                return Err(invalid("it was saved by another node"));
            }
            responses.push(response);
        }
        Ok(responses)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // Left over from a crash, perhaps with other permissions.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn responses() -> Vec<DeltaDiscoveryResponse> {
        let named = |name: &str| DeltaDiscoveryResponse {
            removed_resources: vec![name.to_owned()],
            ..DeltaDiscoveryResponse::default()
        };
        vec![named("a"), named("b")]
    }

    #[test]
    fn the_file_is_whole_private_and_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        let cache = Cache::new(dir.path(), "me");
        assert!(cache.load().expect("no file is no error").is_empty());
        // Left over from a crash, and readable by everyone.
        fs::write(dir.path().join("config.tmp"), "half").expect("writable");
        cache.save(responses()).expect("there is room");
        cache.save(responses()).expect("again");
        let loaded = cache.load().expect("it was written");
        let names: Vec<_> = loaded
            .iter()
            .map(|response| response.removed_resources[0].as_str())
            .collect();
        assert_eq!(names, ["a", "b"]);
        let mode = fs::metadata(cache.path())
            .expect("it is there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).expect("readable").count(), 1);
    }

    #[test]
    fn other_nodes_formats_and_damage_are_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let cache = Cache::new(dir.path(), "me");
        cache.save(responses()).expect("there is room");
        assert!(Cache::new(dir.path(), "you").load().is_err());
        let bytes = fs::read(cache.path()).expect("it is there");
        fs::write(cache.path(), &bytes[..bytes.len() - 1]).expect("writable");
        assert!(cache.load().is_err());
        fs::write(cache.path(), "tulle-config-2\n").expect("writable");
        assert!(cache.load().is_err());
    }

    #[test]
    fn without_room_saving_fails_and_leaves_nothing_half_written() {
        let dir = tempfile::tempdir().expect("a directory");
        let cache = Cache::new(&dir.path().join("absent"), "me");
        assert!(cache.save(responses()).is_err());
        // The file's place is taken by something that a rename cannot replace.
        let cache = Cache::new(dir.path(), "me");
        fs::create_dir(cache.path()).expect("a directory");
        assert!(cache.save(responses()).is_err());
        assert!(!dir.path().join("config.tmp").exists());
    }
}

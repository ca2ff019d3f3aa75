//! The set on a real tmpfs, with a reader beside it.

use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tulle_identity::{
    CsrPolicy, Identity, IssueRequest, Issuer, Root, SpiffeId, Svid, TrustDomain,
};

use super::*;

struct Ca {
    issuer: Issuer,
    id: SpiffeId,
}

impl Ca {
    fn new() -> Self {
        let domain = TrustDomain::new("mesh.test").unwrap();
        let root = Root::generate(&domain, Duration::from_secs(3600)).unwrap();
        Self {
            issuer: Issuer::new(root, [], CsrPolicy::default()).unwrap(),
            id: SpiffeId::new(&domain, "shop", "web").unwrap(),
        }
    }

    fn svid(&self) -> Svid {
        self.issuer
            .issue_svid(&IssueRequest::new(&self.id))
            .unwrap()
    }

    fn identity(&self) -> Identity {
        Identity::new(self.svid(), self.issuer.bundle().clone())
    }
}

/// A directory in memory, as /dev/shm is on every Linux.
fn memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_directory_on_a_disk_is_refused_and_nothing_is_left_there() {
    let disk = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    for dir in [disk.path().to_owned(), disk.path().join("new")] {
        let error = CredentialFiles::open(&dir, None, vec![]).unwrap_err();
        assert!(error.to_string().contains("memory"), "{error}");
    }
    assert_eq!(names(disk.path()), [""; 0]);
}

#[test]
fn the_set_is_what_the_identity_is_and_only_its_owner_reads_the_key() {
    let (ca, memory) = (Ca::new(), memory());
    let dir = memory.path().join("agent");
    let files = CredentialFiles::open(&dir, None, vec![("more.json", "{}".to_owned())]).unwrap();
    let identity = ca.identity();
    files.write(&identity.current()).unwrap();
    let read = |name| fs::read_to_string(dir.join(name)).unwrap();
    let svid = Svid::from_pem(&(read(agent::KEY) + &read(agent::CERT))).unwrap();
    assert_eq!(svid.serial(), identity.current().svid().serial());
    assert_eq!(read(agent::ROOTS), ca.issuer.bundle().to_pem());
    assert_eq!(read("more.json"), "{}");
    let mode = |name| fs::metadata(dir.join(name)).unwrap().mode() & 0o777;
    assert_eq!(
        (mode(agent::KEY), mode(agent::CERT), mode(agent::ROOTS)),
        (0o600, 0o644, 0o644)
    );
}

#[test]
fn a_group_may_read_the_key_if_the_agent_is_a_member() {
    let (ca, memory) = (Ca::new(), memory());
    let own = nix::unistd::getgid().as_raw();
    let files = CredentialFiles::open(memory.path(), Some(own), vec![]).unwrap();
    files.write(&ca.identity().current()).unwrap();
    let key = fs::metadata(memory.path().join(agent::KEY)).unwrap();
    assert_eq!((key.mode() & 0o777, key.gid()), (0o640, own));
}

#[test]
fn one_rename_replaces_the_set_and_older_ones_go() {
    let (ca, memory) = (Ca::new(), memory());
    let files = CredentialFiles::open(memory.path(), None, vec![]).unwrap();
    files.write(&ca.identity().current()).unwrap();
    let before = names(memory.path());
    // Left by a crash in the middle of a write.
    fs::create_dir(memory.path().join("..1")).unwrap();
    symlink("nowhere", memory.path().join(NEW)).unwrap();
    files.write(&ca.identity().current()).unwrap();
    let after = names(memory.path());
    assert_eq!(before.len(), after.len(), "{after:?}");
    let moved: Vec<_> = after.iter().filter(|name| !before.contains(name)).collect();
    assert_eq!(
        moved.len(),
        1,
        "only the directory of the set is new: {moved:?}"
    );
}

#[test]
fn a_reader_never_finds_a_chain_beside_another_chains_key() {
    let (ca, memory) = (Ca::new(), memory());
    let files = CredentialFiles::open(memory.path(), None, vec![]).unwrap();
    files.write(&ca.identity().current()).unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let (dir, stop) = (memory.path().to_owned(), done.clone());
    let reader = std::thread::spawn(move || {
        let mut seen = std::collections::BTreeSet::new();
        while !stop.load(Ordering::Relaxed) {
            // As a watcher does: it looks which set there is, and reads that one.
            let set = dir.join(fs::read_link(dir.join(DATA)).unwrap());
            let read = |name| fs::read_to_string(set.join(name));
            let (Ok(key), Ok(chain)) = (read(agent::KEY), read(agent::CERT)) else {
                continue;
            };
            seen.insert(Svid::from_pem(&(key + &chain)).unwrap().serial().to_owned());
        }
        seen.len()
    });
    for _ in 0..50 {
        files.write(&ca.identity().current()).unwrap();
    }
    done.store(true, Ordering::Relaxed);
    assert!(reader.join().unwrap() >= 1);
}

//! Roots on disk, in the bundle and in rotation, by a clock that the test moves.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::BoxFuture;
use prometheus_client::registry::Registry;
use tempfile::TempDir;
use tokio::time::Instant;
use tulle_identity::{PrivateKey, TrustBundle};

use super::*;

const HOUR: Duration = Duration::from_secs(3600);
const PROPAGATION: Duration = Duration::from_secs(120);

/// A sink that can be broken.
#[derive(Clone, Default)]
struct Sink {
    last: Arc<Mutex<String>>,
    broken: Arc<AtomicBool>,
    /// A namespace that has not got it.
    behind: Arc<Mutex<String>>,
}

impl BundleSink for Sink {
    fn publish<'a>(&'a self, pem: &'a str) -> BoxFuture<'a, io::Result<()>> {
        let published = if self.broken.load(Ordering::Relaxed) {
            Err(io::ErrorKind::StorageFull.into())
        } else {
            *self.last.lock() = pem.to_owned();
            Ok(())
        };
        Box::pin(std::future::ready(published))
    }

    fn lacks(&self, namespace: &str, _pem: &str) -> bool {
        *self.behind.lock() == namespace
    }
}

/// Where an authority lives, and restarts. Its clock is tokio's.
struct Lab {
    dir: TempDir,
    sink: Sink,
    began: (SystemTime, Instant),
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        Self {
            dir,
            sink: Sink::default(),
            began: (SystemTime::now(), Instant::now()),
        }
    }

    async fn open(&self) -> Authority {
        self.open_as("cluster.local")
            .await
            .expect("its state is good")
    }

    async fn open_as(&self, domain: &str) -> Result<Authority, CaError> {
        let (began, start) = self.began;
        let settings = Settings {
            memory: Memory::in_directory(&self.dir.path().join("state"))?,
            leadership: Leadership::alone(),
            plugged: None,
            trust_domain: domain.parse().expect("a trust domain"),
            cluster_domain: "cluster.local".to_owned(),
            leaf_ttl: HOUR,
            propagation: PROPAGATION,
            sinks: vec![Box::new(self.sink.clone())],
            now: Box::new(move || began + start.elapsed()),
        };
        Authority::open(settings, Metrics::register(&mut Registry::default())).await
    }
}

/// Runs the authority for a while.
async fn pass(authority: &Authority, time: Duration) {
    assert!(
        tokio::time::timeout(time, authority.run()).await.is_err(),
        "it runs for ever"
    );
}

/// The root that signs a leaf issued now.
fn signer(authority: &Authority) -> String {
    issued_in(authority, "shop").pem_chain()[1].clone()
}

fn issued_in(authority: &Authority, namespace: &str) -> Issued {
    let id = format!("spiffe://cluster.local/ns/{namespace}/sa/web");
    let id = SpiffeId::parse(&id).expect("an id");
    let csr = PrivateKey::generate()
        .and_then(|key| key.csr(&id))
        .expect("a request");
    authority.issue(&csr, &id, None).expect("issued")
}

fn roots_of(bundle: &str) -> usize {
    TrustBundle::from_pem(bundle.as_bytes())
        .expect("a bundle")
        .roots()
        .len()
}

#[tokio::test(start_paused = true)]
async fn a_root_rotates_by_overlap_and_our_own_certificate_follows() {
    let lab = Lab::new();
    let authority = lab.open().await;
    pass(&authority, Duration::from_secs(1)).await;
    let old = signer(&authority);
    assert_eq!(roots_of(&lab.sink.last.lock()), 1);
    let generation = authority.identity().current().generation();

    authority.rotate().await.expect("steady");
    pass(&authority, PROPAGATION - Duration::from_secs(2)).await;
    assert_eq!(
        roots_of(&lab.sink.last.lock()),
        2,
        "the new root is announced"
    );
    assert_eq!(signer(&authority), old, "and does not sign yet");

    pass(&authority, Duration::from_secs(10)).await;
    let new = signer(&authority);
    assert_ne!(new, old, "the new root signs");
    assert_eq!(
        roots_of(&lab.sink.last.lock()),
        2,
        "the old one is still trusted"
    );
    let current = authority.identity().current();
    assert!(
        current.generation() > generation,
        "our own certificate is a new one"
    );
    current.check().expect("and it holds");

    pass(&authority, HOUR - Duration::from_secs(20)).await;
    assert_eq!(
        roots_of(&lab.sink.last.lock()),
        2,
        "leaves of the old root still live"
    );
    pass(&authority, Duration::from_secs(40)).await;
    assert_eq!(
        lab.sink.last.lock().trim(),
        new.trim(),
        "the old root is gone"
    );
    assert_eq!(signer(&authority), new);
    authority
        .identity()
        .current()
        .check()
        .expect("our own certificate holds without it");
    authority.rotate().await.expect("steady again");
}

#[tokio::test(start_paused = true)]
async fn a_new_root_does_not_sign_before_its_bundle_has_left_and_spread() {
    let lab = Lab::new();
    let authority = lab.open().await;
    pass(&authority, Duration::from_secs(1)).await;
    let old = signer(&authority);
    lab.sink.broken.store(true, Ordering::Relaxed);
    authority.rotate().await.expect("steady");
    pass(&authority, 10 * PROPAGATION).await;
    assert_eq!(signer(&authority), old, "nobody has heard of the new root");
    lab.sink.broken.store(false, Ordering::Relaxed);
    pass(&authority, PROPAGATION / 2).await;
    assert_eq!(roots_of(&lab.sink.last.lock()), 2);
    assert_eq!(signer(&authority), old, "not everybody has");
    pass(&authority, PROPAGATION).await;
    assert_ne!(signer(&authority), old);
}

#[tokio::test(start_paused = true)]
async fn who_has_not_got_the_new_root_has_leaves_of_the_old_one_while_it_is_trusted() {
    let lab = Lab::new();
    let authority = lab.open().await;
    pass(&authority, Duration::from_secs(1)).await;
    let old = signer(&authority);
    authority.rotate().await.expect("steady");
    *lab.sink.behind.lock() = "full".to_owned();
    // Half an hour before the old root goes.
    pass(&authority, PROPAGATION + HOUR / 2).await;
    let (there, here) = (issued_in(&authority, "full"), signer(&authority));
    assert_eq!(there.pem_chain()[1], old);
    assert_ne!(here, old);
    let left = there.not_after.duration_since(SystemTime::now());
    let left = left.expect("it holds");
    assert!(left < HOUR / 2 + Duration::from_secs(60), "{left:?}");
    lab.sink.behind.lock().clear();
    let caught_up = issued_in(&authority, "full");
    assert_eq!(caught_up.pem_chain()[1], here);
}

#[tokio::test(start_paused = true)]
async fn a_rotation_goes_on_after_a_restart() {
    let lab = Lab::new();
    let authority = lab.open().await;
    let old = signer(&authority);
    authority.rotate().await.expect("steady");
    drop(authority);
    let authority = lab.open().await;
    assert_eq!(signer(&authority), old);
    pass(&authority, PROPAGATION + Duration::from_secs(10)).await;
    let new = signer(&authority);
    assert_ne!(new, old);
    drop(authority);
    let authority = lab.open().await;
    assert_eq!(signer(&authority), new);
    pass(&authority, HOUR + Duration::from_secs(10)).await;
    assert_eq!(lab.sink.last.lock().trim(), new.trim());
}

#[tokio::test(start_paused = true)]
async fn our_own_certificate_is_renewed_at_half_of_its_life() {
    let lab = Lab::new();
    let authority = lab.open().await;
    let serial = || authority.identity().current().svid().serial().to_owned();
    let first = serial();
    pass(&authority, HOUR / 2 - Duration::from_secs(10)).await;
    assert_eq!(serial(), first);
    pass(&authority, Duration::from_secs(20)).await;
    assert_ne!(serial(), first);
}

#[tokio::test(start_paused = true)]
async fn a_state_of_another_trust_domain_is_refused_with_the_way_out() {
    let lab = Lab::new();
    drop(lab.open().await);
    let error = lab
        .open_as("other.mesh")
        .await
        .expect_err("another mesh's root")
        .to_string();
    assert!(
        error.contains("--trust-domain cluster.local") && error.contains("ca.json"),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_state_whose_certificates_are_not_those_of_its_keys_is_refused() {
    let lab = Lab::new();
    let file = lab.dir.path().join("state/ca.json");
    drop(lab.open().await);
    let good = std::fs::read_to_string(&file).expect("it was saved");
    let mut state: serde_json::Value = serde_json::from_str(&good).expect("JSON");
    let own = state["roots"][0]["certificate"].clone();
    let own = own.as_str().expect("a text");
    let foreign = new_root(&"cluster.local".parse().expect("a domain")).expect("a root");
    let table = [
        ("its own", own.to_owned(), true),
        ("its own, with a note", format!("a root\n{own}"), true),
        ("another's", foreign.certificate.clone(), false),
        ("both", format!("{own}{}", foreign.certificate), false),
        ("none", String::new(), false),
    ];
    for (name, certificate, taken) in table {
        state["roots"][0]["certificate"] = certificate.into();
        std::fs::write(&file, state.to_string()).expect("writable");
        match lab.open_as("cluster.local").await {
            Ok(_) => assert!(taken, "{name} was taken"),
            Err(error) => {
                let error = error.to_string();
                assert!(!taken && error.contains("ca.json"), "{name}: {error}");
            }
        }
    }
}

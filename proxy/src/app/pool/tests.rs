//! When workers accept, and when they end.

use std::os::fd::AsRawFd as _;
use std::process::Command;
use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tulle_identity::{CsrPolicy, Identity, IssueRequest, Issuer, Root, SpiffeId, TrustDomain};
use tulle_runtime::drain;
use tulle_runtime::env::Env;

use super::*;
use crate::config::{Config, Snapshot};

/// When a worker ends with a connection that ends so long after the start. The drain begins after three seconds.
async fn ends(connection: Duration, deadline: Duration) -> (Duration, bool) {
    let (drain, watch) = drain::channel();
    let overload = Overload::default();
    let open = overload.count(Direction::Inbound);
    open.set(1);
    let begun = Instant::now();
    let ending = async {
        quiet(&watch, &overload).await;
        drop(watch);
        begun.elapsed()
    };
    let draining = async {
        sleep(Duration::from_secs(3)).await;
        drain.drain(deadline).await
    };
    let closing = async {
        sleep(connection).await;
        open.set(0);
    };
    let (ended, in_time, ()) = tokio::join!(ending, draining, closing);
    (ended, in_time)
}

#[tokio::test(start_paused = true)]
async fn a_worker_ends_only_in_a_drain_and_after_the_last_connection_or_the_deadline() {
    let seconds = Duration::from_secs;
    let (ended, in_time) = ends(seconds(7), seconds(25)).await;
    let expected = Duration::from_millis(7_900)..Duration::from_millis(8_200);
    assert!(in_time && expected.contains(&ended), "{ended:?}");
    let (ended, in_time) = ends(seconds(100), seconds(25)).await;
    assert_eq!((ended, in_time), (seconds(28), false));
}

/// Set for the process that runs out of files.
const ALONE: &str = "TULLE_TEST_ALONE";

#[test]
fn when_files_run_out_that_is_counted_and_accepting_goes_on_once_there_are_some() {
    if Env::process().text(ALONE).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        return LocalSet::new().block_on(&runtime, without_files());
    }
    // The limit is that of a whole process.
    let name = "app::pool::tests::when_files_run_out_that_is_counted_and_accepting_goes_on_once_there_are_some";
    let mut alone = Command::new(std::env::current_exe().unwrap());
    alone
        .args(["--exact", name, "--nocapture"])
        .env(ALONE, "yes");
    let output = alone.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("1 passed"), "{said}");
}

fn identity() -> Identity {
    let domain = TrustDomain::new("cluster.local").unwrap();
    let root = Root::generate(&domain, Duration::from_secs(3600)).unwrap();
    let issuer = Issuer::new(root, [], CsrPolicy::default()).unwrap();
    let id = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/web").unwrap();
    let svid = issuer.issue_svid(&IssueRequest::new(&id)).unwrap();
    Identity::new(svid, issuer.bundle().clone())
}

async fn without_files() {
    let (config, _writer) = Config::new(Snapshot::default());
    let (_drain, watch) = drain::channel();
    let worker = Rc::new(Worker::new(Handles {
        config,
        identity: identity(),
        settings: Arc::default(),
        connections: Default::default(),
        limits: Default::default(),
        overload: Default::default(),
        telemetry: None,
        drain: watch,
    }));
    let listener = crate::net::listen(0).unwrap().remove(0);
    let port = listener.local_addr().unwrap().port();
    let metrics = worker.connections.clone();
    let acceptor = Acceptor::new(listener, Direction::Inbound, Arc::default(), metrics).unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let _client = tokio::net::TcpStream::connect(address).await.unwrap();
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let next = std::fs::File::open("/dev/null").unwrap().as_raw_fd();
    let none = u64::try_from(next).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, none, hard).unwrap();
    let accepting = accept(acceptor, Direction::Inbound, worker.clone());
    let accepting = spawn_local(accepting);
    let come_to = async |reached: &dyn Fn() -> bool| {
        let waiting = async {
            while !reached() {
                sleep(Duration::from_millis(1)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(30), waiting).await;
        waited.expect("it does not come to that");
    };
    // Nobody has brought the connection here by capture, so all that becomes of it is a refusal.
    let looked_at = || {
        let refused = |reason| worker.connections.refused(Direction::Inbound, reason);
        refused("loop") + refused("not_captured")
    };
    let counted = || worker.limits.count(Limit::Files, Direction::Inbound);
    come_to(&|| counted() > 1).await;
    assert_eq!(looked_at(), 0, "there was a file for it");
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    come_to(&|| looked_at() == 1).await;
    assert!(!accepting.is_finished());
}

//! Replicas that share their roots in a Secret of a hand-written API server, by a clock that only the test moves.

mod provided;

use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::{BoxFuture, join_all};
use prometheus_client::registry::Registry;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use serde_json::{Value, json};
use tokio::time::Instant;
use tulle_identity::{PrivateKey, TrustBundle};
use tulle_runtime::tasks::Tasks;

use super::*;
use crate::election::Election;
use crate::platform::hand_written_api_server::{ApiServer, Fault};

const HOUR: Duration = Duration::from_secs(3600);
const PROPAGATION: Duration = Duration::from_secs(120);
const SECRET: &str = "/api/v1/namespaces/tulle-system/secrets/tulle-ca";
const BUNDLE: &str = "/api/v1/namespaces/tulle-system/configmaps/tulle-ca-root";
const PROVIDED: &str = "/api/v1/namespaces/tulle-system/secrets/provided";

/// Where what the replicas publish can be seen, in order.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<String>>>, Arc<AtomicBool>);

impl BundleSink for Sink {
    fn publish<'a>(&'a self, pem: &'a str) -> BoxFuture<'a, std::io::Result<()>> {
        let published = if self.1.load(Ordering::Relaxed) {
            Err(std::io::Error::other("a namespace is full"))
        } else {
            self.0.lock().push(pem.to_owned());
            Ok(())
        };
        Box::pin(std::future::ready(published))
    }
}

/// A cluster with replicas in it.
#[derive(Clone, Default)]
struct Lab {
    server: ApiServer,
    sink: Sink,
    provided: bool,
    /// How much later than now it is where a replica begins.
    later: Duration,
}

struct Replica {
    authority: Arc<Authority>,
    leadership: Leadership,
    /// Ends this one.
    tasks: Tasks,
}

impl Lab {
    fn settings(&self, name: &str, domain: &str) -> (Settings, Tasks) {
        let tasks = Tasks::new();
        let client = self.server.client();
        let registry = &mut Registry::default();
        let (election, leadership) = Election::new(&client, name.to_owned(), registry);
        let killed = tasks.cancelled();
        tasks.spawn("election", async move {
            tokio::select! {
                () = killed => {}
                () = election.run(std::future::pending()) => {}
            }
        });
        let domain: TrustDomain = domain.parse().expect("a trust domain");
        let (began, start) = (SystemTime::now() + self.later, Instant::now());
        let settings = Settings {
            memory: Memory::in_secret(&client),
            leadership,
            plugged: self
                .provided
                .then(|| Plugged::new(&client, "provided", &domain)),
            trust_domain: domain,
            cluster_domain: "cluster.local".to_owned(),
            leaf_ttl: HOUR,
            propagation: PROPAGATION,
            sinks: vec![Box::new(self.sink.clone())],
            now: Box::new(move || began + start.elapsed()),
        };
        (settings, tasks)
    }

    async fn open(&self, name: &str, domain: &str) -> Result<Replica, CaError> {
        let (settings, tasks) = self.settings(name, domain);
        let leadership = settings.leadership.clone();
        let metrics = Metrics::register(&mut Registry::default());
        let authority = match Authority::open(settings, metrics).await {
            Ok(authority) => Arc::new(authority),
            Err(error) => {
                tasks.cancel();
                return Err(error);
            }
        };
        let (driven, killed) = (authority.clone(), tasks.cancelled());
        tasks.spawn("authority", async move {
            tokio::select! {
                () = killed => {}
                () = driven.run() => {}
            }
        });
        Ok(Replica {
            authority,
            leadership,
            tasks,
        })
    }

    async fn replica(&self, name: &str) -> Replica {
        self.open(name, "cluster.local").await.expect("it starts")
    }

    /// Two of them, the elected one first.
    async fn two(&self) -> [Replica; 2] {
        let replicas = [self.replica("a").await, self.replica("b").await];
        pass(Duration::from_secs(5)).await;
        let [a, b] = replicas;
        if a.leads() { [a, b] } else { [b, a] }
    }

    fn state(&self) -> Value {
        let secret = self.server.get(SECRET).expect("there is a state");
        let text = secret["data"]["ca.json"].as_str().expect("with a text");
        let text: k8s_openapi::ByteString = serde_json::from_value(json!(text)).expect("base64");
        serde_json::from_slice(&text.0).expect("JSON")
    }

    fn write(&self, state: &Value) {
        let mut secret = self.server.get(SECRET).expect("there is a state");
        let text = k8s_openapi::ByteString(state.to_string().into_bytes());
        secret["data"]["ca.json"] = json!(text);
        self.server.put(SECRET, secret);
    }

    fn published(&self) -> String {
        self.sink.0.lock().last().cloned().unwrap_or_default()
    }
}

impl Replica {
    fn leads(&self) -> bool {
        self.leadership.term().is_some()
    }

    fn signer(&self) -> String {
        self.chain().last().expect("a root").clone()
    }

    fn chain(&self) -> Vec<String> {
        let id = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/web").expect("an id");
        let csr = PrivateKey::generate().and_then(|key| key.csr(&id));
        let issued = self.authority.issue(&csr.expect("a request"), &id, None);
        issued.expect("issued").pem_chain()
    }

    fn bundle(&self) -> usize {
        let pem = self.authority.bundle().borrow().clone();
        roots_of(&pem)
    }
}

fn roots_of(pem: &str) -> usize {
    let bundle = TrustBundle::from_pem(pem.as_bytes()).expect("a bundle");
    bundle.roots().len()
}

async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

#[tokio::test(start_paused = true)]
async fn replicas_that_begin_at_once_have_one_root() {
    let lab = Lab::default();
    let names = ["a", "b", "c", "d", "e"];
    let replicas = join_all(names.iter().map(|name| lab.replica(name))).await;
    let first = replicas[0].signer();
    assert!(replicas.iter().all(|replica| replica.signer() == first));
    let secret = lab.server.get(SECRET).expect("it was made");
    assert_eq!(
        secret["metadata"]["labels"]["app.kubernetes.io/part-of"],
        "tulle"
    );
    assert_eq!(
        lab.server
            .calls("POST /api/v1/namespaces/tulle-system/secrets"),
        1
    );
}

#[tokio::test(start_paused = true)]
async fn all_go_through_a_rotation_that_any_of_them_was_told_to_begin() {
    for told in [0, 1] {
        let lab = Lab::default();
        let replicas = lab.two().await;
        let old = replicas[0].signer();
        replicas[told].authority.rotate().await.expect("steady");
        pass(Duration::from_secs(3)).await;
        for replica in &replicas {
            assert_eq!((replica.bundle(), replica.signer()), (2, old.clone()));
        }
        assert_eq!(roots_of(&lab.published()), 2);
        pass(PROPAGATION).await;
        let new = replicas[0].signer();
        assert_ne!(new, old);
        pass(Duration::from_secs(1)).await;
        assert_eq!(
            replicas[1].signer(),
            new,
            "the other follows within a second"
        );
        pass(HOUR).await;
        assert_eq!(
            replicas[1].bundle(),
            2,
            "a replica may have signed a little longer"
        );
        pass(Duration::from_secs(90)).await;
        assert_eq!(lab.published().trim(), new.trim());
        for replica in &replicas {
            assert_eq!(replica.bundle(), 1);
            replica
                .authority
                .identity()
                .current()
                .check()
                .expect("its own certificate holds");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn another_goes_on_with_the_rotation_of_one_that_was_killed() {
    let lab = Lab::default();
    let [first, second] = lab.two().await;
    let old = first.signer();
    first.authority.rotate().await.expect("steady");
    pass(Duration::from_secs(1)).await;
    first.tasks.cancel();
    pass(PROPAGATION + Duration::from_secs(10)).await;
    assert!(second.leads());
    assert_ne!(second.signer(), old);
    pass(HOUR + Duration::from_secs(120)).await;
    assert_eq!(second.bundle(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_state_that_was_deleted_is_put_back_with_the_same_root() {
    let lab = Lab::default();
    let replicas = lab.two().await;
    let (root, state) = (replicas[0].signer(), lab.state());
    lab.server.remove(SECRET);
    // One that begins just then must not make a root of its own.
    let third = lab.replica("c").await;
    pass(Duration::from_secs(1)).await;
    assert_eq!(lab.state(), state);
    assert_eq!(third.signer(), root);
}

#[tokio::test(start_paused = true)]
async fn a_state_that_is_lost_with_all_that_knew_it_is_not_made_anew_in_silence() {
    let lab = Lab::default();
    lab.server
        .put(BUNDLE, json!({ "data": { "root.pem": "" } }));
    let error = lab
        .open("a", "cluster.local")
        .await
        .err()
        .expect("the root is gone");
    let error = error.to_string();
    assert!(
        error.contains("Secret tulle-system/tulle-ca") && error.contains("backup"),
        "{error}"
    );
    assert!(
        error.contains("ConfigMap tulle-system/tulle-ca-root"),
        "{error}"
    );
    assert!(lab.server.get(SECRET).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_state_that_is_no_good_is_refused_at_the_start_and_left_as_it_is() {
    let lab = Lab::default();
    drop(lab.two().await);
    let good = lab.server.get(SECRET).expect("it was made");
    let mut garbage = good.clone();
    garbage["data"]["ca.json"] = "e30=".into();
    let mut empty = good.clone();
    empty["data"] = Value::Null;
    for (secret, domain, word) in [
        (garbage, "cluster.local", "backup"),
        (empty, "cluster.local", "ca.json"),
        (good, "other.mesh", "--trust-domain cluster.local"),
    ] {
        lab.server.put(SECRET, secret.clone());
        let error = lab
            .open("late", domain)
            .await
            .err()
            .expect("no good")
            .to_string();
        assert!(
            error.contains("Secret tulle-system/tulle-ca") && error.contains(word),
            "{error}"
        );
        let left = lab.server.get(SECRET).expect("it is there");
        assert_eq!(left["data"], secret["data"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_state_that_is_spoilt_later_is_not_used_and_not_overwritten() {
    let lab = Lab::default();
    let [first, second] = lab.two().await;
    let root = first.signer();
    let good = lab.server.get(SECRET).expect("it was made");
    let mut spoilt = good.clone();
    spoilt["data"]["ca.json"] = "e30=".into();
    lab.server.put(SECRET, spoilt.clone());
    pass(Duration::from_secs(30)).await;
    assert_eq!(
        (first.signer(), second.signer()),
        (root.clone(), root.clone())
    );
    assert_eq!(first.authority.metrics.state_broken.get(), 1);
    let refused = first
        .authority
        .rotate()
        .await
        .expect_err("there is nothing to go on from");
    let refused = format!("{:#}", anyhow::Error::new(refused));
    assert!(refused.contains("tulle-ca"), "{refused}");
    assert_eq!(
        lab.server.get(SECRET).expect("it is there")["data"],
        spoilt["data"]
    );
    lab.server.put(SECRET, good);
    pass(Duration::from_secs(2)).await;
    assert_eq!(first.authority.metrics.state_broken.get(), 0);
    first.authority.rotate().await.expect("it goes on");
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_fails_delays_a_start_and_no_more() {
    for fault in [
        Fault::Hangs,
        Fault::Answers(500),
        Fault::Answers(429),
        Fault::Breaks,
    ] {
        let lab = Lab::default();
        lab.server
            .fault("GET /api/v1/namespaces/tulle-system/secrets/", fault);
        lab.server
            .fault("POST /api/v1/namespaces/tulle-system/secrets", fault);
        let replica = lab.replica("a").await;
        assert_eq!(replica.bundle(), 1, "{fault:?}");
    }
    // Of a write whose answer was lost nobody knows; what counts is what is there.
    let lab = Lab::default();
    lab.server.fault(
        "POST /api/v1/namespaces/tulle-system/secrets",
        Fault::DoesAndHangs,
    );
    let replica = lab.replica("a").await;
    assert_eq!(lab.state()["roots"][0]["certificate"], replica.signer());
}

#[tokio::test(start_paused = true)]
async fn who_cannot_see_the_roots_does_not_sign_by_them_for_long() {
    let lab = Lab::default();
    let [first, _second] = lab.two().await;
    for _ in 0..10_000 {
        lab.server.fault("secrets", Fault::Answers(500));
    }
    pass(Duration::from_secs(20)).await;
    assert!(first.authority.is_current(), "not at once");
    pass(Duration::from_secs(60)).await;
    assert!(!first.authority.is_current());
    lab.server.heal();
    pass(Duration::from_secs(2)).await;
    assert!(first.authority.is_current());
}

#[test]
fn injectors_have_dns_names_and_nobody_else() {
    let table = [
        ("tulle-system", "tulle-injector", Some("tulle-injector")),
        (
            "tulle-system",
            "tulle-injector-canary",
            Some("tulle-injector-canary"),
        ),
        ("tulle-system", "tulle-injector-a.b", None),
        ("tulle-system", "tulle-injectors", None),
        ("tulle-system", "tulle-control", None),
        ("tulle-system", "default", None),
        ("shop", "tulle-injector", None),
        ("tulle-system-2", "tulle-injector", None),
    ];
    let domain: TrustDomain = "cluster.local".parse().expect("a trust domain");
    for (namespace, account, name) in table {
        let id = SpiffeId::new(&domain, namespace, account).expect("an id");
        let expected = name.map(|name| {
            let short = format!("{name}.tulle-system.svc");
            let long = format!("{short}.k8s.test");
            vec![short, long]
        });
        assert_eq!(
            server_names(&id, "k8s.test"),
            expected.unwrap_or_default(),
            "{namespace}/{account}"
        );
    }
}

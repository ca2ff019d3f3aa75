//! Who may ask the admin endpoint what, and what it shows.

use std::io;
use std::sync::OnceLock;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use prometheus_client::metrics::counter::Counter;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tulle_identity::{CsrPolicy, Identity, IssueRequest, Issuer, Root, SpiffeId};
use tulle_runtime::trace::{self, Format};

use super::*;
use crate::config::cluster::{Discovery, EndpointState, Health, PeerIdentity};
use crate::config::route::{
    HeaderChanges, PathMatch, QueryMatch, Regex, RouteAction, RouteMatch, StringMatch, VirtualHosts,
};
use crate::config::store::ConfigWriter;
use crate::config::{
    Cluster, Endpoint, InboundListener, InboundPort, Lookup, Protocol, Route, RouteTable, Snapshot,
};
use crate::merged::Failures;

const PATHS: [&str; 8] = [
    "/ready",
    "/config_dump",
    "/clusters",
    "/certs",
    "/stats",
    "/stats/prometheus",
    "/logging",
    "/metrics",
];

struct Rig {
    at: Addresses,
    limits: Limits,
    status: Status,
    writer: ConfigWriter,
    _tasks: Tasks,
}

impl Rig {
    async fn new() -> Self {
        Self::with(Settings::default()).await
    }

    async fn with(settings: Settings) -> Self {
        let (config, writer) = Config::new(Snapshot::default());
        let mut registry = Registry::default();
        registry.register("tulle_things", "Things", Counter::<u64>::default());
        let (tasks, limits) = (Tasks::new(), Limits::default());
        let status = Status::default();
        let refusals = Refusals::register(registry.sub_registry_with_prefix("tulle"));
        let admin = Admin {
            status: status.clone(),
            config,
            registry: Arc::new(registry),
            trace: trace_handle(),
            app: AppProbes {
                settings: Arc::new(settings),
                ..no_probes()
            },
            merged: no_app_metrics(),
            limits: limits.clone(),
            refusals,
        };
        let any = |ip: &str| format!("{ip}:0").parse().unwrap();
        let at = Addresses {
            admin: any("127.0.0.1"),
            metrics: any("[::]"),
            readiness: any("[::]"),
        };
        let at = admin.start(at, &tasks).await.unwrap();
        Self {
            at,
            limits,
            status,
            writer,
            _tasks: tasks,
        }
    }

    async fn get(&self, path: &str) -> (u16, String) {
        ask(self.at.admin, "GET", path, "Host: 127.0.0.1\r\n", "").await
    }
}

/// The process has one log filter.
fn trace_handle() -> TraceHandle {
    static HANDLE: OnceLock<TraceHandle> = OnceLock::new();
    HANDLE
        .get_or_init(|| trace::init("off", Format::Text).unwrap())
        .clone()
}

async fn ask(at: SocketAddr, method: &str, path: &str, headers: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, at.port()))
        .await
        .unwrap();
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (
        head.split(' ').nth(1).unwrap().parse().unwrap(),
        body.to_owned(),
    )
}

fn identity() -> Identity {
    let id = SpiffeId::parse("spiffe://mesh.test/ns/shop/sa/web").unwrap();
    let root = Root::generate(&id.trust_domain(), Duration::from_secs(3_600)).unwrap();
    let issuer = Issuer::new(root, [], CsrPolicy::default()).unwrap();
    Identity::new(
        issuer.issue_svid(&IssueRequest::new(&id)).unwrap(),
        issuer.bundle().clone(),
    )
}

fn inbound() -> Arc<InboundListener> {
    let default = InboundPort {
        plaintext: true,
        protocol: Protocol::Http(Arc::default()),
        service: None,
    };
    Arc::new(InboundListener {
        ports: Default::default(),
        default,
    })
}

#[tokio::test]
async fn readiness_says_what_is_missing() {
    let rig = Rig::new().await;
    let kubelet = async || {
        ask(
            rig.at.readiness,
            "GET",
            "/healthz/ready",
            "Host: 10.0.0.1:15021\r\n",
            "",
        )
        .await
    };
    assert_eq!(
        kubelet().await,
        (503, "not ready: no certificate from the CA yet\n".into())
    );
    rig.status.set_identity(identity());
    assert!(kubelet().await.1.contains("no configuration"));
    rig.writer.publish(Snapshot {
        inbound: Some(inbound()),
        ..Snapshot::default()
    });
    assert!(kubelet().await.1.contains("not listening"));
    rig.status.set_listening();
    assert_eq!(kubelet().await, (200, "ready\n".into()));
    assert_eq!(rig.get("/ready").await.0, 200);
    rig.status.set_draining();
    assert_eq!(kubelet().await, (503, "not ready: draining\n".into()));
}

#[tokio::test]
async fn the_pod_network_gets_readiness_and_metrics_and_nothing_else() {
    let rig = Rig::new().await;
    let host = "Host: 127.0.0.1\r\n";
    for (at, allowed) in [
        (rig.at.metrics, &["/metrics", "/stats/prometheus"][..]),
        (rig.at.readiness, &["/healthz/ready"]),
    ] {
        for path in PATHS.iter().chain(&["/healthz/ready", "/drain"]) {
            let (status, _) = ask(at, "GET", path, host, "").await;
            assert_eq!(
                status == 404,
                !allowed.contains(path),
                "GET {path}: {status}"
            );
            let (status, _) = ask(at, "POST", path, host, "").await;
            assert!(matches!(status, 404 | 405), "POST {path}: {status}");
        }
    }
    let (_, metrics) = ask(rig.at.metrics, "GET", "/metrics", host, "").await;
    assert!(metrics.contains("tulle_things_total 0"), "{metrics}");
}

#[tokio::test]
async fn each_server_has_as_much_room_as_the_operator_says_and_more_is_counted() {
    let mut settings = Settings::default();
    settings.bounds.admin_connections = 4;
    let rig = Rig::with(settings).await;
    for (at, name, path) in [
        (rig.at.admin, "admin", "/ready"),
        (rig.at.metrics, "metrics", "/metrics"),
        (rig.at.readiness, "readiness", "/healthz/ready"),
    ] {
        let count = || rig.limits.count_at(Limit::AdminConnections, name);
        let mut held = Vec::new();
        for _ in 0..4 {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, at.port()))
                .await
                .unwrap();
            // It is served once this is answered.
            let request = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            stream.read_u8().await.unwrap();
            held.push(stream);
        }
        assert_eq!(count(), 0, "{name}");
        let (status, _) = ask(at, "GET", path, "Host: 127.0.0.1\r\n", "").await;
        assert!(matches!(status, 200 | 503), "{name}: {status}");
        assert_eq!(count(), 1, "{name}");
    }
}

#[tokio::test]
async fn the_operators_port_is_never_open_to_the_network() {
    let (config, _writer) = Config::new(Snapshot::default());
    let admin = Admin {
        status: Status::default(),
        config,
        registry: Arc::default(),
        trace: trace_handle(),
        app: no_probes(),
        merged: no_app_metrics(),
        limits: Limits::default(),
        refusals: Refusals::default(),
    };
    for open in ["0.0.0.0:0", "[::]:0", "10.1.0.5:0"] {
        let at = Addresses {
            admin: open.parse().unwrap(),
            ..Addresses::default()
        };
        let refused = admin.clone().start(at, &Tasks::new()).await;
        assert!(matches!(refused, Err(AdminError::Exposed(_))), "{open}");
    }
    assert!(Addresses::default().admin.ip().is_loopback());
    // And what listens on loopback is not there on another address of this machine.
    let rig = Rig::new().await;
    let elsewhere = TcpStream::connect(("127.0.0.2", rig.at.admin.port())).await;
    assert_eq!(
        elsewhere.unwrap_err().kind(),
        io::ErrorKind::ConnectionRefused
    );
}

#[tokio::test]
async fn forged_requests_are_refused() {
    let rig = Rig::new().await;
    let rows = [
        ("a rebound name", "Host: evil.example:15000\r\n"),
        ("no host", ""),
        ("two hosts", "Host: 127.0.0.1\r\nHost: evil.example\r\n"),
    ];
    for (name, headers) in rows {
        for path in PATHS {
            let (status, body) = ask(rig.at.admin, "GET", path, headers, "").await;
            assert!(
                (400..500).contains(&status),
                "{name}: {path}: {status} {body}"
            );
        }
    }
    let browsers = [
        "Host: 127.0.0.1\r\nOrigin: https://evil.example\r\n",
        "Host: 127.0.0.1\r\nOrigin: null\r\n",
        "Host: 127.0.0.1\r\nSec-Fetch-Site: cross-site\r\n",
        "Host: evil.example\r\n",
    ];
    for headers in browsers {
        for path in ["/drain", "/logging"] {
            let (status, body) = ask(rig.at.admin, "POST", path, headers, "trace").await;
            assert!(
                (400..500).contains(&status),
                "{path} with {headers}: {status} {body}"
            );
        }
    }
    // What only reads cannot be asked to change anything.
    for path in ["/drain?x", "/drain"] {
        assert!(matches!(rig.get(path).await.0, 404 | 405));
    }
    let asked = tokio::time::timeout(Duration::ZERO, rig.status.drain_requested()).await;
    assert!(asked.is_err(), "nobody may drain");
    let (_, metrics) = rig.get("/stats").await;
    let browser = "{server=\"admin\",reason=\"browser\"} 6\n";
    let counted = format!("tulle_admin_refused_total{browser}");
    assert!(metrics.contains(&counted), "{metrics}");
}

#[tokio::test]
async fn a_posted_drain_reaches_who_waits_for_it() {
    let rig = Rig::new().await;
    let (status, _) = ask(rig.at.admin, "POST", "/drain", "Host: localhost\r\n", "").await;
    assert_eq!(status, 202);
    tokio::time::timeout(Duration::from_secs(5), rig.status.drain_requested())
        .await
        .unwrap();
}

#[tokio::test]
async fn the_log_filter_is_shown_and_changed_and_a_bad_one_is_refused() {
    let rig = Rig::new().await;
    let post = async |body: &'static str| {
        ask(
            rig.at.admin,
            "POST",
            "/logging",
            "Host: localhost\r\n",
            body,
        )
        .await
    };
    assert_eq!(post("error").await, (200, "error\n".into()));
    assert_eq!(rig.get("/logging").await, (200, "error\n".into()));
    let (status, body) = post("loud=very=much").await;
    assert_eq!(status, 400);
    assert!(body.contains("bad log filter"), "{body}");
    assert_eq!(post("").await.0, 400);
    assert_eq!(rig.get("/logging").await, (200, "error\n".into()));
    assert_eq!(post("off").await.0, 200);
}

#[tokio::test]
async fn certificates_are_shown_without_keys() {
    let rig = Rig::new().await;
    assert_eq!(rig.get("/certs").await.0, 503);
    rig.status.set_identity(identity());
    let (status, body) = rig.get("/certs").await;
    let shown: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(status, 200);
    assert_eq!(shown["id"], "spiffe://mesh.test/ns/shop/sa/web");
    assert_eq!(shown["valid"], true);
    assert_eq!(shown["roots"].as_array().unwrap().len(), 1);
    assert!(!body.contains("PRIVATE"));
}

#[tokio::test]
async fn config_is_dumped_without_credentials() {
    let rig = Rig::new().await;
    rig.writer.publish(config());
    let (status, body) = rig.get("/config_dump").await;
    assert_eq!(status, 200);
    let dump: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(dump["outbound"]["10.9.0.1:80"], "unknown to the mesh");
    assert_eq!(dump["inbound"]["default"]["plaintext"], true);
    let route = &dump["routes"]["api"][0];
    assert_eq!(route["matches"]["path"]["prefix"], "/");
    assert_eq!(route["matches"]["query"][0]["value"]["regex"], "v[0-9]+");
    assert_eq!(route["action"]["respond"], 204);
    let set = &route["request_headers"]["set"];
    assert_eq!(set[0]["value"], "blue");
    assert_eq!(set[1]["name"], "authorization");
    assert!(!body.contains("hunter2"), "{body}");
    let hosts = &dump["routes"]["hosted"]["hosts"];
    assert_eq!(hosts[0]["domains"][0], "*.example");
    assert_eq!(hosts[0]["routes"][0]["name"], "only");
    assert_eq!(hosts[1]["routes"], serde_json::json!([]));
    let endpoint = &dump["clusters"]["api"]["endpoints"][0];
    assert_eq!(endpoint["mtls"][0], "spiffe://mesh.test/ns/shop/sa/api");

    let live: Value = serde_json::from_str(&rig.get("/clusters").await.1).unwrap();
    assert_eq!(live["api"]["active"], 0);
    assert_eq!(live["api"]["endpoints"][0]["address"], "10.1.0.7:8080");
}

fn config() -> Snapshot {
    let header = |name: &'static str, value: &'static str| {
        (
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        )
    };
    let pattern = regex_automata::meta::Regex::new("^(?:v[0-9]+)$").unwrap();
    let route = Route {
        name: "only".into(),
        matches: RouteMatch {
            path: PathMatch::Prefix("/".into()),
            method: None,
            headers: Vec::new(),
            query: vec![QueryMatch {
                name: "version".into(),
                value: StringMatch::Regex(Regex::new("v[0-9]+", pattern)),
            }],
            grpc: false,
        },
        action: RouteAction::Respond(StatusCode::NO_CONTENT),
        request_headers: HeaderChanges {
            set: vec![
                header("x-colour", "blue"),
                header("authorization", "Bearer hunter2"),
            ],
            ..HeaderChanges::default()
        },
        response_headers: HeaderChanges::default(),
    };
    let endpoint = Endpoint {
        address: "10.1.0.7:8080".parse().unwrap(),
        weight: 1,
        health: Health::Healthy,
        mtls: Some(Arc::new(PeerIdentity(Box::new([SpiffeId::parse(
            "spiffe://mesh.test/ns/shop/sa/api",
        )
        .unwrap()])))),
        foreign: false,
        workload: Arc::default(),
        state: Arc::new(EndpointState::default()),
    };
    let cluster = Cluster {
        name: "api".into(),
        service: None,
        discovery: Discovery::Eds,
        lb_policy: Default::default(),
        http: Default::default(),
        connect_timeout: Duration::from_secs(1),
        limits: Default::default(),
        outlier: Default::default(),
        endpoints: [Arc::new(endpoint)].into(),
        state: Arc::default(),
    };
    let mut snapshot = Snapshot {
        inbound: Some(inbound()),
        ..Snapshot::default()
    };
    snapshot
        .outbound
        .insert("10.9.0.1:80".parse().unwrap(), Lookup::Unknown);
    let mut hosts = VirtualHosts::new(true);
    for (name, domain, routes) in [("suffix", "*.example", 0..1), ("all", "*", 1..1)] {
        hosts.push(name, routes);
        hosts.add(domain).unwrap();
    }
    let routes = vec![Arc::new(route)];
    for (name, hosts) in [("api", None), ("hosted", Some(Box::new(hosts)))] {
        let table = RouteTable {
            name: name.into(),
            routes: routes.clone(),
            hosts,
        };
        snapshot.routes.insert(name.into(), Arc::new(table));
    }
    snapshot.clusters.insert("api".into(), Arc::new(cluster));
    snapshot
}

fn no_app_metrics() -> Arc<Merged> {
    Arc::new(Merged::new(None, Failures::default(), 0))
}

fn no_probes() -> AppProbes {
    AppProbes {
        probes: Probes::default(),
        address: Ipv4Addr::LOCALHOST.into(),
        settings: Arc::default(),
    }
}

#[tokio::test]
async fn a_probe_that_nobody_saved_is_not_found() {
    let rig = Rig::new().await;
    let (status, body) = ask(
        rig.at.metrics,
        "GET",
        "/app-health/web/readyz",
        "Host: 127.0.0.1\r\n",
        "",
    )
    .await;
    assert_eq!(
        (status, body.trim()),
        (404, "no probe of the app has this path")
    );
}

#[tokio::test]
async fn a_hook_that_failed_is_an_answer_that_kubelet_cannot_take_for_one() {
    let rig = Rig::new().await;
    let path = "/app-lifecycle/web/prestopz";
    let (status, body) = ask(rig.at.metrics, "GET", path, "Host: 127.0.0.1\r\n", "").await;
    // Followed, it leads to no host by no protocol.
    assert_eq!(status, 307);
    assert_eq!(body.trim(), "no probe of the app has this path");
}

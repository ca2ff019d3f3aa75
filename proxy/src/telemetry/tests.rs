//! What is counted, and under which labels.

mod access_log;

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderValue, Method, StatusCode, Version};
use tulle_runtime::metrics::encode;

use super::*;
use crate::config::cluster::{Discovery, EndpointState, Health, PeerIdentity};
use crate::config::listener::ServiceName;
use crate::config::store::ConfigWriter;
use crate::config::{Cluster, Endpoint, InboundListener, InboundPort, Lookup, Protocol, Snapshot};
use crate::conn::{Direction, Downstream, Security};
use crate::grpc::Messages;

const POD: &str = "10.1.0.5";
const CLIENT: &str = "10.1.0.9";

struct Rig {
    telemetry: Telemetry,
    hub: Arc<Hub>,
    registry: Registry,
    writer: ConfigWriter,
}

impl Rig {
    fn new(snapshot: Snapshot, log: Option<AccessLog>) -> Self {
        let (config, writer) = Config::new(snapshot);
        let mut registry = Registry::default();
        let local = Local {
            address: POD.parse().unwrap(),
            id: id("web"),
            workload: workload("web", "web"),
        };
        let hub = Hub::new(config, local, log, &mut registry);
        Self {
            telemetry: Telemetry::new(hub.clone()),
            hub,
            registry,
            writer,
        }
    }

    fn scrape(&self) -> String {
        encode(&self.registry)
    }

    /// The value of the one series of a metric that has all these labels.
    fn value(&self, metric: &str, labels: &[(&str, &str)]) -> Option<String> {
        let scrape = self.scrape();
        let mut found = scrape.lines().filter(|line| {
            line.starts_with(&format!("{metric}{{"))
                && labels
                    .iter()
                    .all(|(name, value)| line.contains(&format!("{name}=\"{value}\"")))
        });
        let line = found.next()?;
        assert!(
            found.next().is_none(),
            "more than one series of {metric} {labels:?}"
        );
        Some(line.rsplit(' ').next().unwrap().to_owned())
    }
}

fn id(account: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://mesh.test/ns/shop/sa/{account}")).unwrap()
}

fn workload(name: &str, account: &str) -> Arc<Workload> {
    Arc::new(Workload {
        name: name.into(),
        namespace: "shop".into(),
        service_account: account.into(),
        app: name.into(),
        version: "v1".into(),
        canonical_name: name.into(),
        cluster: "Kubernetes".into(),
        ..Workload::default()
    })
}

fn service() -> Arc<ServiceName> {
    Arc::new(ServiceName {
        name: "api".into(),
        namespace: "shop".into(),
        host: "api.shop.svc.cluster.local".into(),
    })
}

fn address(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

fn endpoint() -> Arc<Endpoint> {
    Arc::new(Endpoint {
        address: address("10.1.0.7", 8080),
        weight: 1,
        health: Health::Healthy,
        mtls: Some(Arc::new(PeerIdentity(Box::new([id("api")])))),
        foreign: false,
        workload: workload("api", "api"),
        state: Arc::new(EndpointState::default()),
    })
}

fn cluster() -> Arc<Cluster> {
    Arc::new(Cluster {
        name: "outbound|80||api.shop.svc.cluster.local".into(),
        service: Some(service()),
        discovery: Discovery::Eds,
        lb_policy: Default::default(),
        http: Default::default(),
        connect_timeout: Duration::from_secs(1),
        limits: Default::default(),
        outlier: Default::default(),
        endpoints: [endpoint()].into(),
        state: Arc::default(),
    })
}

fn downstream(direction: Direction, peer: Option<SpiffeId>) -> Rc<Downstream> {
    Rc::new(Downstream {
        direction,
        peer: address(CLIENT, 40_000),
        original_dst: address(POD, 8080),
        security: peer.map_or(Security::Plaintext, |peer| Security::Mtls {
            peer,
            sidecar: true,
        }),
        sni: None,
    })
}

fn request(downstream: Rc<Downstream>) -> RequestRecord {
    RequestRecord {
        downstream,
        start_time: SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
        started: Instant::now(),
        duration: Duration::from_millis(7),
        method: Method::GET,
        uri: "/items?id=1".parse().unwrap(),
        version: Version::HTTP_11,
        authority: Some(HeaderValue::from_static("api:80")),
        user_agent: None,
        request_id: None,
        forwarded_for: None,
        grpc: false,
        status: StatusCode::OK,
        grpc_status: None,
        flags: ResponseFlags::default(),
        details: "",
        route: None,
        cluster: None,
        endpoint: None,
        upstream: None,
        upstream_time: None,
        attempts: 1,
        bytes_received: 3,
        bytes_sent: 1_500,
        messages_received: Messages::default(),
        messages_sent: Messages::default(),
    }
}

fn outbound() -> RequestRecord {
    RequestRecord {
        cluster: Some(cluster()),
        endpoint: Some(endpoint()),
        ..request(downstream(Direction::Outbound, None))
    }
}

#[test]
fn a_source_reports_both_ends_by_name() {
    let rig = Rig::new(Snapshot::default(), None);
    let record = outbound();
    rig.telemetry.request(&record);
    rig.telemetry.request(&record);
    let labels = [
        ("reporter", "source"),
        ("source_workload", "web"),
        ("source_workload_namespace", "shop"),
        ("source_principal", "spiffe://mesh.test/ns/shop/sa/web"),
        ("source_canonical_revision", "unknown"),
        ("destination_workload", "api"),
        ("destination_principal", "spiffe://mesh.test/ns/shop/sa/api"),
        ("destination_app", "api"),
        ("destination_version", "v1"),
        ("destination_service", "api.shop.svc.cluster.local"),
        ("destination_service_name", "api"),
        ("destination_service_namespace", "shop"),
        ("request_protocol", "http"),
        ("response_code", "200"),
        ("response_flags", "-"),
        ("connection_security_policy", "unknown"),
    ];
    assert_eq!(
        rig.value("istio_requests_total", &labels).as_deref(),
        Some("2")
    );
    assert_eq!(
        rig.value("istio_request_duration_milliseconds_sum", &labels)
            .as_deref(),
        Some("14.0")
    );
    assert_eq!(
        rig.value("istio_response_bytes_sum", &labels).as_deref(),
        Some("3000.0")
    );
    assert_eq!(
        rig.value("istio_request_bytes_count", &labels).as_deref(),
        Some("2")
    );
    let buckets = [&labels[..], &[("le", "10.0")]].concat();
    assert_eq!(
        rig.value("istio_request_duration_milliseconds_bucket", &buckets)
            .as_deref(),
        Some("2")
    );
    let scrape = rig.scrape();
    for help in [
        "# TYPE istio_requests counter",
        "# TYPE istio_request_duration_milliseconds histogram",
    ] {
        assert!(scrape.contains(help), "{help}");
    }
}

#[test]
fn outcomes_have_series_of_their_own() {
    let rig = Rig::new(Snapshot::default(), None);
    let mut failed = RequestRecord {
        status: StatusCode::SERVICE_UNAVAILABLE,
        ..outbound()
    };
    failed.flags.insert(ResponseFlag::UpstreamConnectionFailure);
    failed
        .flags
        .insert(ResponseFlag::UpstreamRetryLimitExceeded);
    rig.telemetry.request(&failed);
    rig.telemetry.request(&RequestRecord {
        grpc: true,
        grpc_status: Some(14),
        ..outbound()
    });
    let flags = [("response_code", "503"), ("response_flags", "UF,URX")];
    assert_eq!(
        rig.value("istio_requests_total", &flags).as_deref(),
        Some("1")
    );
    let grpc = [("request_protocol", "grpc"), ("grpc_response_status", "14")];
    assert_eq!(
        rig.value("istio_requests_total", &grpc).as_deref(),
        Some("1")
    );
}

#[test]
fn statuses_that_nobody_has_defined_have_a_series_a_class() {
    let rig = Rig::new(Snapshot::default(), None);
    let mut count = 0;
    for code in 100..1_000 {
        let status = StatusCode::from_u16(code).unwrap();
        rig.telemetry.request(&RequestRecord {
            status,
            ..outbound()
        });
        count += usize::from(status.canonical_reason().is_none() && status != 499);
    }
    for status in 0..1_000 {
        rig.telemetry.request(&RequestRecord {
            grpc: true,
            grpc_status: Some(status),
            ..outbound()
        });
    }
    let value = |label: (&str, &str)| {
        let value = rig.value(
            "istio_requests_total",
            &[("request_protocol", "http"), label],
        );
        value.map_or(0, |value| value.parse::<usize>().unwrap())
    };
    for code in ["200", "404", "499", "503"] {
        assert_eq!(value(("response_code", code)), 1, "{code}");
    }
    assert_eq!(value(("response_code", "299")), 0);
    let classes = (1..=9).map(|class| value(("response_code", &format!("{class}xx"))));
    assert_eq!(classes.sum::<usize>(), count);
    let unknown = [("request_protocol", "grpc"), ("grpc_response_status", "2")];
    let unknown = rig.value("istio_requests_total", &unknown);
    assert_eq!(unknown.as_deref(), Some("984"));
    let scrape = rig.scrape();
    let series = scrape
        .lines()
        .filter(|line| line.starts_with("istio_requests_total{"));
    assert!(series.count() < 100, "{scrape}");
}

#[test]
fn messages_of_grpc_calls_are_counted_and_other_requests_have_none() {
    let rig = Rig::new(Snapshot::default(), None);
    let mut call = RequestRecord {
        grpc: true,
        grpc_status: Some(0),
        ..outbound()
    };
    call.messages_received.note(&[0; 5]);
    call.messages_sent.note(&[0; 15]);
    rig.telemetry.request(&call);
    rig.telemetry.request(&call);
    rig.telemetry.request(&outbound());
    let labels = [("request_protocol", "grpc"), ("grpc_response_status", "0")];
    for (metric, expected) in [
        ("istio_request_messages_total", "2"),
        ("istio_response_messages_total", "6"),
    ] {
        assert_eq!(rig.value(metric, &labels).as_deref(), Some(expected));
        assert_eq!(rig.value(metric, &[("request_protocol", "http")]), None);
    }
}

#[test]
fn a_destination_believes_a_workload_only_with_its_identity() {
    let mut snapshot = Snapshot::default();
    snapshot.workloads.insert(
        CLIENT.parse().unwrap(),
        Lookup::Known(workload("shop-front", "front")),
    );
    snapshot.inbound = Some(Arc::new(InboundListener {
        ports: Default::default(),
        default: inbound_port(),
    }));
    let rig = Rig::new(snapshot, None);
    let rows = [
        (
            Some(id("front")),
            "shop-front",
            "spiffe://mesh.test/ns/shop/sa/front",
            "mutual_tls",
        ),
        (
            Some(id("thief")),
            "unknown",
            "spiffe://mesh.test/ns/shop/sa/thief",
            "mutual_tls",
        ),
        (None, "unknown", "unknown", "none"),
    ];
    for (peer, name, principal, policy) in rows {
        rig.telemetry
            .request(&request(downstream(Direction::Inbound, peer)));
        let labels = [
            ("reporter", "destination"),
            ("source_workload", name),
            ("source_principal", principal),
            ("destination_workload", "web"),
            ("destination_service_name", "api"),
            ("connection_security_policy", policy),
        ];
        assert_eq!(
            rig.value("istio_requests_total", &labels).as_deref(),
            Some("1"),
            "{principal}"
        );
    }
}

fn inbound_port() -> InboundPort {
    InboundPort {
        plaintext: true,
        protocol: Protocol::Http(Arc::default()),
        service: Some(service()),
    }
}

#[test]
fn a_new_snapshot_gives_names_to_who_was_unknown() {
    let rig = Rig::new(Snapshot::default(), None);
    let record = request(downstream(Direction::Inbound, Some(id("front"))));
    rig.telemetry.request(&record);
    assert!(
        rig.value("istio_requests_total", &[("source_workload", "shop-front")])
            .is_none()
    );
    let mut next = (*rig.writer.current()).clone();
    next.workloads.insert(
        CLIENT.parse().unwrap(),
        Lookup::Known(workload("shop-front", "front")),
    );
    rig.writer.publish(next);
    rig.telemetry.request(&record);
    assert_eq!(
        rig.value("istio_requests_total", &[("source_workload", "shop-front")])
            .as_deref(),
        Some("1")
    );
}

#[test]
fn a_flood_of_callers_ends_in_unknown_series() {
    let rig = Rig::new(Snapshot::default(), None);
    for number in 0..1_200 {
        rig.telemetry.request(&request(downstream(
            Direction::Inbound,
            Some(id(&format!("caller-{number}"))),
        )));
    }
    let overflow = [
        ("source_principal", "unknown"),
        ("destination_workload", "unknown"),
        ("response_code", "unknown"),
    ];
    assert_eq!(
        rig.value("istio_requests_total", &overflow).as_deref(),
        Some("200")
    );
    let scrape = rig.scrape();
    assert!(
        scrape.contains("tulle_telemetry_overflows_total 200"),
        "counted"
    );
    assert_eq!(
        scrape
            .lines()
            .filter(|line| line.starts_with("istio_requests_total{"))
            .count(),
        1_001
    );
}

#[test]
fn unknown_destinations_are_one_series() {
    let rig = Rig::new(Snapshot::default(), None);
    let mut passthrough = Cluster::clone(&cluster());
    passthrough.service = None;
    passthrough.discovery = Discovery::OriginalDst;
    let record = ConnectionRecord {
        cluster: Some(Arc::new(passthrough)),
        ..ConnectionRecord::new(downstream(Direction::Outbound, None))
    };
    let session = rig.telemetry.connection_opened(&record);
    session.received(10);
    session.sent(20);
    let labels = [
        ("reporter", "source"),
        ("destination_service_name", "PassthroughCluster"),
        ("request_protocol", "tcp"),
    ];
    assert_eq!(
        rig.value("istio_tcp_connections_opened_total", &labels)
            .as_deref(),
        Some("1")
    );
    assert_eq!(
        rig.value("istio_tcp_received_bytes_total", &labels)
            .as_deref(),
        Some("10")
    );
    assert_eq!(
        rig.value("istio_tcp_sent_bytes_total", &labels).as_deref(),
        Some("20")
    );
    assert_eq!(
        rig.value("istio_tcp_connections_closed_total", &labels)
            .as_deref(),
        Some("0")
    );
    drop(session);
    assert_eq!(
        rig.value("istio_tcp_connections_closed_total", &labels)
            .as_deref(),
        Some("1")
    );
    // The default telemetry counts nothing and does not mind.
    Telemetry::default().connection_opened(&record).sent(1);
}

//! What the stand-in says: what linkerd's control plane says of Services and pods that nobody made rules for, except that
//! the apps' ports are for clients of the mesh only, as with all others here.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use linkerd2_proxy_api::destination::{
    DestinationProfile, Http2ClientParams, ProtocolHint, RetryBudget, TlsIdentity, Update,
    WeightedAddr, WeightedAddrSet, http2_client_params, protocol_hint, tls_identity, update,
};
use linkerd2_proxy_api::http_route::{HttpRouteMatch, PathMatch, path_match};
use linkerd2_proxy_api::meta::{Metadata, Resource, metadata};
use linkerd2_proxy_api::net::IpNetwork;
use linkerd2_proxy_api::{inbound, outbound};
use tulle_identity::{SpiffeId, mesh_server_name};
use tulle_runtime::names::ports;

use crate::bare::PEER;
use crate::{serve, systems::System};

/// How long a protocol may take to show.
const DETECT: Duration = Duration::from_secs(10);

/// The policy of a port of this pod.
pub(super) fn inbound(port: u16, client: &SpiffeId) -> inbound::Server {
    use inbound::proxy_protocol::{Detect, Kind, Opaque};
    let kind = if port == serve::TCP {
        Kind::Opaque(Opaque {})
    } else {
        Kind::Detect(Detect {
            timeout: DETECT.try_into().ok(),
            http_routes: vec![inbound::HttpRoute {
                metadata: Some(default("default")),
                rules: vec![inbound::http_route::Rule {
                    matches: vec![every_path()],
                    ..Default::default()
                }],
                ..Default::default()
            }],
            ..Default::default()
        })
    };
    let permit = if port == ports::ADMIN {
        inbound::authn::Permit::Unauthenticated(inbound::authn::PermitUnauthenticated {})
    } else {
        of_the_mesh(client)
    };
    let labels = [("group", ""), ("kind", "default"), ("name", "bench")];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
    inbound::Server {
        protocol: Some(inbound::ProxyProtocol { kind: Some(kind) }),
        authorizations: vec![inbound::Authz {
            networks: vec![inbound::Network {
                net: Some(IpNetwork {
                    ip: Some(IpAddr::from([0, 0, 0, 0]).into()),
                    prefix_len: 0,
                }),
                except: Vec::new(),
            }],
            authentication: Some(inbound::Authn {
                permit: Some(permit),
            }),
            labels: labels.clone().into(),
            metadata: Some(default("bench")),
        }],
        labels: labels.into(),
        ..Default::default()
    }
}

fn of_the_mesh(client: &SpiffeId) -> inbound::authn::Permit {
    use inbound::authn::permit_mesh_tls::{Clients, PermitClientIdentities};
    inbound::authn::Permit::MeshTls(inbound::authn::PermitMeshTls {
        clients: Some(Clients::Identities(PermitClientIdentities {
            identities: vec![inbound::Identity {
                name: client.to_string(),
            }],
            suffixes: Vec::new(),
        })),
    })
}

/// The policy of a port of the server's Service.
pub(super) fn outbound(port: u16) -> outbound::OutboundPolicy {
    use outbound::proxy_protocol::{Detect, Http1, Http2, Kind, Opaque};
    let opaque = Opaque {
        routes: vec![opaque_route(port)],
    };
    let kind = if port == serve::TCP {
        Kind::Opaque(opaque)
    } else {
        let routes = vec![http_route(port)];
        Kind::Detect(Detect {
            timeout: DETECT.try_into().ok(),
            opaque: Some(opaque),
            http1: Some(Http1 {
                routes: routes.clone(),
                failure_accrual: None,
            }),
            http2: Some(Http2 {
                routes,
                failure_accrual: None,
            }),
        })
    };
    outbound::OutboundPolicy {
        protocol: Some(outbound::ProxyProtocol { kind: Some(kind) }),
        metadata: Some(service(port)),
    }
}

fn opaque_route(port: u16) -> outbound::OpaqueRoute {
    use outbound::opaque_route::distribution::{FirstAvailable, Kind};
    use outbound::opaque_route::{Distribution, RouteBackend, Rule};
    let first = FirstAvailable {
        backends: vec![RouteBackend {
            backend: Some(backend(port)),
            filters: Vec::new(),
        }],
    };
    outbound::OpaqueRoute {
        metadata: Some(default("opaq")),
        rules: vec![Rule {
            backends: Some(Distribution {
                kind: Some(Kind::FirstAvailable(first)),
            }),
            filters: Vec::new(),
        }],
    }
}

fn http_route(port: u16) -> outbound::HttpRoute {
    use outbound::http_route::distribution::{FirstAvailable, Kind};
    use outbound::http_route::{Distribution, RouteBackend, Rule};
    let first = FirstAvailable {
        backends: vec![RouteBackend {
            backend: Some(backend(port)),
            ..Default::default()
        }],
    };
    outbound::HttpRoute {
        metadata: Some(default("http")),
        rules: vec![Rule {
            matches: vec![every_path()],
            backends: Some(Distribution {
                kind: Some(Kind::FirstAvailable(first)),
            }),
            timeouts: Some(Default::default()),
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn backend(port: u16) -> outbound::Backend {
    use outbound::backend::balance_p2c::{Load, PeakEwma};
    use outbound::backend::endpoint_discovery::{DestinationGet, Kind as Discovery};
    use outbound::backend::{BalanceP2c, EndpointDiscovery, Kind};
    let discovery = EndpointDiscovery {
        kind: Some(Discovery::Dst(DestinationGet { path: path(port) })),
    };
    let load = PeakEwma {
        default_rtt: Duration::from_millis(30).try_into().ok(),
        decay: Duration::from_secs(10).try_into().ok(),
    };
    outbound::Backend {
        metadata: Some(service(port)),
        kind: Some(Kind::Balancer(BalanceP2c {
            discovery: Some(discovery),
            load: Some(Load::PeakEwma(load)),
        })),
        queue: Some(outbound::Queue {
            capacity: 100,
            failfast_timeout: Duration::from_secs(3).try_into().ok(),
        }),
    }
}

/// The Service's port as linkerd names it.
fn path(port: u16) -> String {
    let namespace = System::Linkerd.namespace();
    format!("{PEER}.{namespace}.svc.cluster.local:{port}")
}

/// The endpoint of the Service, as of a pod with a sidecar of linkerd's.
pub(super) fn endpoints(server: SocketAddr, id: &SpiffeId) -> Update {
    let hint = if server.port() == serve::TCP {
        protocol_hint::Protocol::Opaque(protocol_hint::Opaque {})
    } else {
        protocol_hint::Protocol::H2(protocol_hint::H2 {})
    };
    let name = tls_identity::DnsLikeIdentity {
        name: mesh_server_name().to_str().into_owned(),
    };
    let uri = tls_identity::UriLikeIdentity {
        uri: id.to_string(),
    };
    let keep_alive = http2_client_params::KeepAlive {
        interval: Duration::from_secs(10).try_into().ok(),
        timeout: Duration::from_secs(3).try_into().ok(),
        while_idle: true,
    };
    let labels = [
        ("namespace", System::Linkerd.namespace()),
        ("deployment", PEER),
        ("serviceaccount", PEER),
        ("zone", ""),
    ];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let endpoint = WeightedAddr {
        addr: Some(server.into()),
        weight: 10_000,
        metric_labels: labels.into(),
        tls_identity: Some(TlsIdentity {
            server_name: Some(name),
            strategy: Some(tls_identity::Strategy::UriLikeIdentity(uri)),
        }),
        protocol_hint: Some(ProtocolHint {
            opaque_transport: Some(protocol_hint::OpaqueTransport {
                inbound_port: ports::INBOUND.into(),
            }),
            protocol: Some(hint),
        }),
        http2: Some(Http2ClientParams {
            keep_alive: Some(keep_alive),
            ..Default::default()
        }),
        ..Default::default()
    };
    let set = WeightedAddrSet {
        addrs: vec![endpoint],
        metric_labels: [("service".to_owned(), PEER.to_owned())].into(),
    };
    Update {
        update: Some(update::Update::Add(set)),
    }
}

/// What is said of a Service that has no profile.
pub(super) fn profile(port: u16) -> DestinationProfile {
    DestinationProfile {
        fully_qualified_name: path(port).trim_end_matches(&format!(":{port}")).to_owned(),
        opaque_protocol: port == serve::TCP,
        retry_budget: Some(RetryBudget {
            retry_ratio: 0.2,
            min_retries_per_second: 10,
            ttl: Duration::from_secs(10).try_into().ok(),
        }),
        parent_ref: Some(service(port)),
        ..Default::default()
    }
}

fn every_path() -> HttpRouteMatch {
    HttpRouteMatch {
        path: Some(PathMatch {
            kind: Some(path_match::Kind::Prefix("/".to_owned())),
        }),
        ..Default::default()
    }
}

fn default(name: &str) -> Metadata {
    Metadata {
        kind: Some(metadata::Kind::Default(name.to_owned())),
    }
}

fn service(port: u16) -> Metadata {
    Metadata {
        kind: Some(metadata::Kind::Resource(Resource {
            group: "core".to_owned(),
            kind: "Service".to_owned(),
            name: PEER.to_owned(),
            namespace: System::Linkerd.namespace().to_owned(),
            port: port.into(),
            ..Default::default()
        })),
    }
}

//! Envoy's configuration: captured connections, mutual TLS between the sidecars, HTTP as HTTP.
//!
//! As little as does what the other sidecars do: static clusters with one endpoint, the router as the only filter, no
//! tracing, no retries. The access log has the same keys as ours, and metrics are on. What apps say in HTTP/1.1 stays that
//! between the sidecars, as with ours and with Istio unless told otherwise; Envoy could carry it for less as HTTP/2.

use std::path::PathBuf;

use serde_json::{Value, json};
use tulle_identity::SpiffeId;
use tulle_runtime::names::{INBOUND_SOURCE_V4, alpn, files, ports};

use crate::serve;
use crate::wire::GROUP;

/// More than any measurement opens.
const PLENTY: u32 = 1_000_000;
const EXTENSION: &str = "type.googleapis.com/envoy.extensions";

/// What the configuration depends on.
pub(super) struct Place {
    pub(super) server: String,
    pub(super) client_id: SpiffeId,
    pub(super) server_id: SpiffeId,
    pub(super) chain: PathBuf,
    pub(super) key: PathBuf,
    pub(super) mark: Option<u32>,
}

/// What is spoken on a port.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Http1,
    Http2,
    Opaque,
}

const PROTOCOLS: [(u16, Protocol); 4] = [
    (serve::HTTP1, Protocol::Http1),
    (serve::HTTP2, Protocol::Http2),
    (serve::GRPC, Protocol::Http2),
    (serve::TCP, Protocol::Opaque),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Outbound,
    Inbound,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

impl Place {
    pub(super) fn bootstrap(&self) -> Value {
        let clusters: Vec<_> = PROTOCOLS
            .iter()
            .flat_map(|(port, protocol)| {
                [Way::Outbound, Way::Inbound].map(|way| self.cluster(way, *port, *protocol))
            })
            .collect();
        json!({
            "node": {"id": "bench", "cluster": "bench"},
            "admin": {"address": address("127.0.0.1", ports::ADMIN)},
            "static_resources": {
                "listeners": [
                    self.listener(Way::Outbound, ports::OUTBOUND),
                    self.listener(Way::Inbound, ports::INBOUND),
                    readiness(),
                ],
                "clusters": clusters,
            },
        })
    }

    fn listener(&self, way: Way, port: u16) -> Value {
        let chains: Vec<_> = PROTOCOLS
            .iter()
            .map(|(port, protocol)| {
                let mut chain = json!({
                    "filter_chain_match": {"destination_port": port},
                    "filters": [filter(way, *port, *protocol)],
                });
                if way == Way::Inbound {
                    chain["transport_socket"] = self.terminate(*protocol);
                }
                chain
            })
            .collect();
        json!({
            "name": way.name(),
            "address": address("0.0.0.0", port),
            "listener_filters": [{
                "name": "envoy.filters.listener.original_dst",
                "typed_config": {"@type": format!("{EXTENSION}.filters.listener.original_dst.v3.OriginalDst")},
            }],
            "filter_chains": chains,
        })
    }

    fn cluster(&self, way: Way, port: u16, protocol: Protocol) -> Value {
        let mut cluster = json!({
            "name": cluster_name(way, port),
            "type": "STATIC",
            "connect_timeout": "1s",
            "circuit_breakers": {"thresholds": [{
                "max_connections": PLENTY,
                "max_pending_requests": PLENTY,
                "max_requests": PLENTY,
            }]},
            "load_assignment": {
                "cluster_name": cluster_name(way, port),
                "endpoints": [{"lb_endpoints": [{"endpoint": {
                    "address": address(&self.server, port),
                }}]}],
            },
        });
        if let Some(options) = explicit(protocol) {
            cluster["typed_extension_protocol_options"] =
                json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options});
        }
        let mut bind = json!({});
        match way {
            Way::Outbound => cluster["transport_socket"] = self.originate(protocol),
            Way::Inbound => {
                let source = INBOUND_SOURCE_V4.to_string();
                bind["source_address"] = json!({"address": source, "port_value": 0});
            }
        }
        if let Some(mark) = self.mark {
            // SOL_SOCKET, SO_MARK
            bind["socket_options"] = json!([{"level": 1, "name": 36, "int_value": mark}]);
        }
        if bind != json!({}) {
            cluster["upstream_bind_config"] = bind;
        }
        cluster
    }

    fn originate(&self, protocol: Protocol) -> Value {
        json!({
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": format!("{EXTENSION}.transport_sockets.tls.v3.UpstreamTlsContext"),
                "common_tls_context": self.tls(&self.server_id, protocol),
                "max_session_keys": 0,
            },
        })
    }

    fn terminate(&self, protocol: Protocol) -> Value {
        json!({
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": format!("{EXTENSION}.transport_sockets.tls.v3.DownstreamTlsContext"),
                "common_tls_context": self.tls(&self.client_id, protocol),
                "require_client_certificate": true,
                "disable_stateless_session_resumption": true,
                "disable_stateful_session_resumption": true,
            },
        })
    }

    fn tls(&self, peer: &SpiffeId, protocol: Protocol) -> Value {
        let name = match protocol {
            Protocol::Http1 => alpn::HTTP1,
            Protocol::Http2 => alpn::H2,
            Protocol::Opaque => alpn::TCP,
        };
        json!({
            "tls_params": {
                "tls_minimum_protocol_version": "TLSv1_3",
                "tls_maximum_protocol_version": "TLSv1_3",
                "ecdh_curves": [GROUP],
            },
            "alpn_protocols": [String::from_utf8_lossy(name)],
            "tls_certificates": [{
                "certificate_chain": {"filename": self.chain},
                "private_key": {"filename": self.key},
            }],
            "validation_context": {
                "trusted_ca": {"filename": files::CA_BUNDLE},
                "match_typed_subject_alt_names": [{
                    "san_type": "URI",
                    "matcher": {"exact": peer.as_str()},
                }],
            },
        })
    }
}

fn address(ip: &str, port: u16) -> Value {
    json!({"socket_address": {"address": ip, "port_value": port}})
}

fn cluster_name(way: Way, port: u16) -> String {
    format!("{}|{port}", way.name())
}

/// What upstream connections speak.
fn explicit(protocol: Protocol) -> Option<Value> {
    let options = match protocol {
        Protocol::Opaque => return None,
        Protocol::Http1 => json!({"http_protocol_options": {}}),
        Protocol::Http2 => json!({"http2_protocol_options": {}}),
    };
    Some(json!({
        "@type": format!("{EXTENSION}.upstreams.http.v3.HttpProtocolOptions"),
        "explicit_http_config": options,
    }))
}

fn filter(way: Way, port: u16, protocol: Protocol) -> Value {
    let (name, cluster) = (way.name(), cluster_name(way, port));
    if protocol == Protocol::Opaque {
        return json!({
            "name": "envoy.filters.network.tcp_proxy",
            "typed_config": {
                "@type": format!("{EXTENSION}.filters.network.tcp_proxy.v3.TcpProxy"),
                "stat_prefix": cluster,
                "cluster": cluster,
                "access_log": [access_log()],
            },
        });
    }
    let codec = if protocol == Protocol::Http1 {
        "HTTP1"
    } else {
        "HTTP2"
    };
    let mut manager = json!({
        "@type": format!("{EXTENSION}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "codec_type": codec,
        "stat_prefix": cluster,
        "access_log": [access_log()],
        "http_filters": [router()],
        "route_config": {
            "name": name,
            "virtual_hosts": [{
                "name": name,
                "domains": ["*"],
                "routes": [{
                    "name": "default",
                    "match": {"prefix": "/"},
                    "route": {"cluster": cluster, "timeout": "0s"},
                }],
            }],
        },
    });
    if way == Way::Inbound {
        manager["forward_client_cert_details"] = "SANITIZE_SET".into();
        manager["set_current_client_cert_details"] = json!({"uri": true});
    }
    json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": manager})
}

fn router() -> Value {
    json!({
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": format!("{EXTENSION}.filters.http.router.v3.Router")},
    })
}

/// The keys that our own access log has.
fn access_log() -> Value {
    json!({
        "name": "envoy.access_loggers.file",
        "typed_config": {
            "@type": format!("{EXTENSION}.access_loggers.file.v3.FileAccessLog"),
            "path": "/dev/stdout",
            "log_format": {"json_format": {
                "start_time": "%START_TIME%",
                "method": "%REQ(:METHOD)%",
                "path": "%REQ(:PATH)%",
                "protocol": "%PROTOCOL%",
                "response_code": "%RESPONSE_CODE%",
                "response_flags": "%RESPONSE_FLAGS%",
                "response_code_details": "%RESPONSE_CODE_DETAILS%",
                "connection_termination_details": "%CONNECTION_TERMINATION_DETAILS%",
                "upstream_transport_failure_reason": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
                "bytes_received": "%BYTES_RECEIVED%",
                "bytes_sent": "%BYTES_SENT%",
                "duration": "%DURATION%",
                "upstream_service_time": "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
                "x_forwarded_for": "%REQ(X-FORWARDED-FOR)%",
                "user_agent": "%REQ(USER-AGENT)%",
                "request_id": "%REQ(X-REQUEST-ID)%",
                "authority": "%REQ(:AUTHORITY)%",
                "upstream_host": "%UPSTREAM_HOST%",
                "upstream_cluster": "%UPSTREAM_CLUSTER%",
                "upstream_local_address": "%UPSTREAM_LOCAL_ADDRESS%",
                "downstream_local_address": "%DOWNSTREAM_LOCAL_ADDRESS%",
                "downstream_remote_address": "%DOWNSTREAM_REMOTE_ADDRESS%",
                "requested_server_name": "%REQUESTED_SERVER_NAME%",
                "route_name": "%ROUTE_NAME%",
            }},
        },
    })
}

/// Answers the kubelet that it is ready.
fn readiness() -> Value {
    let manager = json!({
        "@type": format!("{EXTENSION}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "readiness",
        "http_filters": [router()],
        "route_config": {"virtual_hosts": [{
            "name": "readiness",
            "domains": ["*"],
            "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 200}}],
        }]},
    });
    json!({
        "name": "readiness",
        "address": address("0.0.0.0", ports::READINESS),
        "filter_chains": [{"filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": manager,
        }]}],
    })
}

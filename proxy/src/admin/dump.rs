//! The config snapshot as JSON, for people. Values of headers that carry credentials are left out.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};
use serde_json::{Map, Value, json};

use crate::config::cluster::{Discovery, Health, LbPolicy, UpstreamHttp};
use crate::config::listener::{RouteSource, ServiceName, TcpRoute};
use crate::config::route::{
    Forward, HashOn, HashPolicy, HeaderChanges, PathMatch, PathRewrite, Redirect, RouteAction,
    RouteMatch, StringMatch,
};
use crate::config::{
    Cluster, Endpoint, InboundPort, Lookup, Protocol, Route, RouteTable, Snapshot, Workload,
};

/// Names, or parts of them, of headers whose values are credentials.
const CREDENTIALS: [&str; 6] = [
    "authorization",
    "cookie",
    "token",
    "secret",
    "key",
    "password",
];

pub(super) fn snapshot(snapshot: &Snapshot) -> Value {
    json!({
        "generation": snapshot.generation,
        "inbound": snapshot.inbound.as_ref().map(|inbound| json!({
            "ports": object(inbound.ports.iter().map(|(port, of)| (port.to_string(), inbound_port(of)))),
            "default": inbound_port(&inbound.default),
        })),
        "outbound": object(snapshot.outbound.iter().map(|(address, found)| {
            let found = lookup(found, |listener| json!({
                "name": &*listener.name,
                "protocol": protocol(&listener.protocol, route_source),
            }));
            (address.to_string(), found)
        })),
        "routes": object(snapshot.routes.iter().map(|(name, table)| (name.to_string(), routes(table)))),
        "clusters": object(snapshot.clusters.iter().map(|(name, of)| (name.to_string(), cluster(of)))),
        "workloads": object(snapshot.workloads.iter().map(|(address, found)| {
            (address.to_string(), lookup(found, |of| workload(of)))
        })),
    })
}

pub(super) fn health(health: Health) -> &'static str {
    match health {
        Health::Healthy => "healthy",
        Health::Draining => "draining",
        Health::Unhealthy => "unhealthy",
    }
}

fn object(entries: impl Iterator<Item = (String, Value)>) -> Value {
    Value::Object(entries.collect::<Map<_, _>>())
}

fn lookup<T>(found: &Lookup<T>, known: impl FnOnce(&T) -> Value) -> Value {
    match found {
        Lookup::Known(value) => known(value),
        Lookup::Unknown => "unknown to the mesh".into(),
    }
}

fn inbound_port(port: &InboundPort) -> Value {
    json!({
        "plaintext": port.plaintext,
        "protocol": protocol(&port.protocol, |table| routes(table)),
        "service": service(port.service.as_ref()),
    })
}

fn protocol<H>(protocol: &Protocol<H>, http: impl Fn(&H) -> Value) -> Value {
    match protocol {
        Protocol::Http(routes) => json!({ "http": http(routes) }),
        Protocol::Tcp(route) => json!({ "tcp": tcp(route) }),
        Protocol::Detect {
            http: routes,
            tcp: route,
        } => json!({ "detect": { "http": http(routes), "tcp": tcp(route) } }),
    }
}

fn route_source(source: &RouteSource) -> Value {
    match source {
        RouteSource::Named(name) => json!({ "routes": &**name }),
        RouteSource::Inline(table) => routes(table),
    }
}

fn tcp(route: &TcpRoute) -> Value {
    let weights = route
        .clusters
        .iter()
        .map(|(name, weight)| (name.to_string(), (*weight).into()));
    let clusters = object(weights);
    if route.by_source {
        json!({ "clusters": clusters, "hash": ["source_ip"] })
    } else {
        clusters
    }
}

fn routes(table: &RouteTable) -> Value {
    let all = |routes: &[Arc<Route>]| routes.iter().map(|of| route(of)).collect::<Value>();
    let Some(hosts) = &table.hosts else {
        return all(&table.routes);
    };
    json!({
        "ignore_port": hosts.ignores_port(),
        "hosts": hosts.all().iter().map(|host| json!({
            "name": &*host.name,
            "domains": host.domains,
            "routes": all(table.routes.get(host.routes.clone()).unwrap_or_default()),
        })).collect::<Value>(),
    })
}

fn route(route: &Route) -> Value {
    json!({
        "name": &*route.name,
        "matches": matches(&route.matches),
        "action": match &route.action {
            RouteAction::Forward(to) => json!({ "forward": forward(to) }),
            RouteAction::Redirect(to) => json!({ "redirect": redirect(to) }),
            RouteAction::Respond(status) => json!({ "respond": status.as_u16() }),
        },
        "request_headers": changes(&route.request_headers),
        "response_headers": changes(&route.response_headers),
    })
}

fn matches(matches: &RouteMatch) -> Value {
    json!({
        "path": match &matches.path {
            PathMatch::Exact(path) => json!({ "exact": &**path }),
            PathMatch::Prefix(path) => json!({ "prefix": &**path }),
            PathMatch::SegmentPrefix(path) => json!({ "segment_prefix": &**path }),
            PathMatch::Regex(regex) => json!({ "regex": regex.as_str() }),
        },
        "method": matches.method.as_ref().map(Method::as_str),
        "headers": matches.headers.iter().map(|of| json!({
            "name": of.name.as_str(),
            "value": if is_credential(&of.name) { "...".into() } else { string_match(&of.value) },
            "invert": of.invert,
        })).collect::<Vec<_>>(),
        "query": matches.query.iter().map(|of| json!({
            "name": &*of.name,
            "value": string_match(&of.value),
        })).collect::<Vec<_>>(),
        "grpc": matches.grpc,
    })
}

fn string_match(value: &StringMatch) -> Value {
    match value {
        StringMatch::Present => "present".into(),
        StringMatch::Exact(text) => json!({ "exact": &**text }),
        StringMatch::Prefix(text) => json!({ "prefix": &**text }),
        StringMatch::Regex(regex) => json!({ "regex": regex.as_str() }),
    }
}

fn forward(to: &Forward) -> Value {
    json!({
        "clusters": to.clusters.iter().map(|of| json!({
            "name": &*of.name,
            "weight": of.weight,
            "request_headers": changes(&of.request_headers),
            "response_headers": changes(&of.response_headers),
        })).collect::<Vec<_>>(),
        "path_rewrite": to.path_rewrite.as_ref().map(path_rewrite),
        "host_rewrite": to.host_rewrite.as_ref().map(text),
        "timeout_ms": to.timeout.map(millis),
        "per_try_timeout_ms": to.per_try_timeout.map(millis),
        "retry": {
            "attempts": to.retry.attempts,
            "status_codes": to.retry.status_codes.iter().map(http::StatusCode::as_u16).collect::<Vec<_>>(),
            "on_reset": to.retry.on_reset,
            "grpc_codes": to.retry.grpc_codes,
            "backoff_base_ms": millis(to.retry.backoff_base),
            "backoff_max_ms": millis(to.retry.backoff_max),
            "max_replay_bytes": to.retry.max_replay_bytes,
        },
        "hash": to.hash.iter().map(hash_policy).collect::<Vec<_>>(),
    })
}

fn hash_policy(policy: &HashPolicy) -> Value {
    let on: Value = match &policy.on {
        HashOn::SourceIp => "source_ip".into(),
        HashOn::Header(name) => json!({ "header": name.as_str() }),
    };
    json!({ "on": on, "terminal": policy.terminal })
}

fn redirect(to: &Redirect) -> Value {
    json!({
        "scheme": to.scheme.as_ref().map(http::uri::Scheme::as_str),
        "host": to.host.as_deref(),
        "port": to.port,
        "path": to.path.as_ref().map(path_rewrite),
        "status": to.status.as_u16(),
    })
}

fn path_rewrite(rewrite: &PathRewrite) -> Value {
    match rewrite {
        PathRewrite::Full(path) => json!({ "full": &**path }),
        PathRewrite::Prefix(path) => json!({ "prefix": &**path }),
    }
}

fn changes(changes: &HeaderChanges) -> Value {
    let pairs = |headers: &[(HeaderName, HeaderValue)]| -> Vec<Value> {
        let value = |name, value| {
            if is_credential(name) {
                "...".into()
            } else {
                text(value)
            }
        };
        headers
            .iter()
            .map(|(name, of)| json!({ "name": name.as_str(), "value": value(name, of) }))
            .collect()
    };
    json!({
        "remove": changes.remove.iter().map(HeaderName::as_str).collect::<Vec<_>>(),
        "set": pairs(&changes.set),
        "add": pairs(&changes.add),
    })
}

fn is_credential(name: &HeaderName) -> bool {
    CREDENTIALS.iter().any(|part| name.as_str().contains(part))
}

fn text(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

fn cluster(cluster: &Cluster) -> Value {
    json!({
        "service": service(cluster.service.as_ref()),
        "discovery": match cluster.discovery {
            Discovery::Eds => "eds",
            Discovery::Inline => "inline",
            Discovery::OriginalDst => "original_dst",
        },
        "lb_policy": match cluster.lb_policy {
            LbPolicy::LeastRequest => "least_request",
            LbPolicy::RoundRobin => "round_robin",
            LbPolicy::Random => "random",
            LbPolicy::ConsistentHash => "consistent_hash",
        },
        "http": match cluster.http {
            UpstreamHttp::Downstream => "downstream",
            UpstreamHttp::Http1 => "http1",
            UpstreamHttp::Http2 => "http2",
        },
        "connect_timeout_ms": millis(cluster.connect_timeout),
        "limits": {
            "max_connections": cluster.limits.max_connections,
            "max_pending_requests": cluster.limits.max_pending_requests,
            "max_requests": cluster.limits.max_requests,
            "retry_budget_percent": cluster.limits.retry_budget_percent,
            "min_retry_concurrency": cluster.limits.min_retry_concurrency,
        },
        "outlier": {
            "consecutive_local_failures": cluster.outlier.consecutive_local_failures,
            "base_ejection_time_ms": millis(cluster.outlier.base_ejection_time),
            "max_ejection_time_ms": millis(cluster.outlier.max_ejection_time),
            "max_ejection_percent": cluster.outlier.max_ejection_percent,
        },
        "endpoints": cluster.endpoints.iter().map(|of| endpoint(of)).collect::<Vec<_>>(),
    })
}

fn endpoint(endpoint: &Endpoint) -> Value {
    let ids = |peer: &crate::config::cluster::PeerIdentity| {
        peer.0.iter().map(|id| id.to_string()).collect::<Vec<_>>()
    };
    json!({
        "address": endpoint.address.to_string(),
        "weight": endpoint.weight,
        "health": health(endpoint.health),
        "mtls": endpoint.mtls.as_deref().map(ids),
        "foreign": endpoint.foreign,
        "workload": workload(&endpoint.workload),
    })
}

fn workload(of: &Workload) -> Value {
    json!({
        "name": &*of.name,
        "kind": &*of.kind,
        "namespace": &*of.namespace,
        "service_account": &*of.service_account,
        "app": &*of.app,
        "version": &*of.version,
        "canonical_name": &*of.canonical_name,
        "canonical_revision": &*of.canonical_revision,
        "cluster": &*of.cluster,
    })
}

fn service(service: Option<&Arc<ServiceName>>) -> Value {
    service.map_or(Value::Null, |service| (&*service.host).into())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

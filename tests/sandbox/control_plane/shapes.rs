//! Resources in Envoy's usual shapes, as protobuf's JSON.

use serde_json::{Value, json};

const API: &str = "type.googleapis.com/envoy.config";
const EXTENSIONS: &str = "type.googleapis.com/envoy.extensions.filters";

/// An HTTP listener on port 8080 of an address, with routes by RDS.
pub(super) fn listener(name: &str, address: &str, routes: &str) -> Value {
    json!({
        "@type": format!("{API}.listener.v3.Listener"),
        "name": name,
        "address": { "socketAddress": { "address": address, "portValue": 8080 } },
        "trafficDirection": "OUTBOUND",
        "filterChains": [{ "filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typedConfig": {
                "@type": format!("{EXTENSIONS}.network.http_connection_manager.v3.HttpConnectionManager"),
                "statPrefix": name,
                "rds": { "routeConfigName": routes, "configSource": ads() },
                "httpFilters": [router()],
            },
        }] }],
    })
}

/// The same listener with a filter before the router that nobody here knows.
pub(super) fn with_fault(listener: &Value) -> Value {
    let mut listener = listener.clone();
    let fault = json!({
        "name": "envoy.filters.http.fault",
        "typedConfig": { "@type": format!("{EXTENSIONS}.http.fault.v3.HTTPFault") },
    });
    listener["filterChains"][0]["filters"][0]["typedConfig"]["httpFilters"] =
        json!([fault, router()]);
    listener
}

/// Routes of one virtual host, everything to these clusters by weight.
pub(super) fn routes(name: &str, clusters: &[(&str, u32)]) -> Value {
    let weighted: Vec<_> = clusters
        .iter()
        .map(|(name, weight)| json!({ "name": name, "weight": weight }))
        .collect();
    json!({
        "@type": format!("{API}.route.v3.RouteConfiguration"),
        "name": name,
        "virtualHosts": [{
            "name": name,
            "domains": ["*"],
            "routes": [{
                "match": { "prefix": "/" },
                "route": { "weightedClusters": { "clusters": weighted } },
            }],
        }],
    })
}

/// The same routes, with a copy of each request for somebody else.
pub(super) fn mirrored(routes: &Value) -> Value {
    let mut routes = routes.clone();
    routes["virtualHosts"][0]["routes"][0]["route"]["requestMirrorPolicies"] =
        json!([{ "cluster": "two" }]);
    routes
}

/// A cluster whose endpoints come by EDS.
pub(super) fn cluster(name: &str) -> Value {
    json!({
        "@type": format!("{API}.cluster.v3.Cluster"),
        "name": name,
        "type": "EDS",
        "edsClusterConfig": { "edsConfig": ads() },
        "connectTimeout": "1s",
    })
}

/// A cluster with one endpoint inside.
pub(super) fn static_cluster(name: &str, ip: &str) -> Value {
    let mut assignment = assignment(name, ip);
    assignment
        .as_object_mut()
        .map(|fields| fields.remove("@type"));
    json!({
        "@type": format!("{API}.cluster.v3.Cluster"),
        "name": name,
        "type": "STATIC",
        "connectTimeout": "1s",
        "loadAssignment": assignment,
    })
}

/// One endpoint.
pub(super) fn assignment(cluster: &str, ip: &str) -> Value {
    let address = json!({ "socketAddress": { "address": ip, "portValue": 8080 } });
    json!({
        "@type": format!("{API}.endpoint.v3.ClusterLoadAssignment"),
        "clusterName": cluster,
        "endpoints": [{ "lbEndpoints": [{ "endpoint": { "address": address } }] }],
    })
}

fn router() -> Value {
    json!({
        "name": "envoy.filters.http.router",
        "typedConfig": { "@type": format!("{EXTENSIONS}.http.router.v3.Router") },
    })
}

fn ads() -> Value {
    json!({ "ads": {}, "resourceApiVersion": "V3" })
}

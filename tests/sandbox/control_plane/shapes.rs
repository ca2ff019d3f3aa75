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

/// Routes of several virtual hosts, each with its domains and one action for everything.
pub(super) fn hosted(name: &str, hosts: &[(&[&str], Value)]) -> Value {
    let host = |(at, (domains, action)): (usize, &(&[&str], Value))| {
        let mut route = action.clone();
        route["match"] = json!({ "prefix": "/" });
        json!({ "name": format!("{name}-{at}"), "domains": domains, "routes": [route] })
    };
    json!({
        "@type": format!("{API}.route.v3.RouteConfiguration"),
        "name": name,
        "virtualHosts": hosts.iter().enumerate().map(host).collect::<Vec<_>>(),
    })
}

/// A listener on a port of every address, with routes inside, as in a file of Envoy's.
pub(super) fn inline_listener(port: u16, routes: &Value) -> Value {
    let mut listener = listener("inline", "0.0.0.0", "");
    let routes = without_type(routes);
    listener["address"]["socketAddress"]["portValue"] = port.into();
    listener["name"] = format!("inline-{port}").into();
    if let Some(manager) = listener["filterChains"][0]["filters"][0]["typedConfig"].as_object_mut()
    {
        manager.remove("rds");
        manager.insert("routeConfig".to_owned(), routes);
    }
    without_type(&listener)
}

fn without_type(resource: &Value) -> Value {
    let mut resource = resource.clone();
    resource
        .as_object_mut()
        .map(|fields| fields.remove("@type"));
    resource
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
    json!({
        "@type": format!("{API}.cluster.v3.Cluster"),
        "name": name,
        "type": "STATIC",
        "connectTimeout": "1s",
        "loadAssignment": without_type(&assignment(name, ip)),
    })
}

/// A cluster of a host name that somebody has to look up.
pub(super) fn dns_cluster(name: &str, kind: &str, host: &str) -> Value {
    let mut cluster = static_cluster(name, host);
    cluster["type"] = kind.into();
    cluster
}

/// A cluster that is called with TLS of its own.
pub(super) fn tls_cluster(name: &str, ip: &str) -> Value {
    let mut cluster = static_cluster(name, ip);
    let context =
        "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
    cluster["transportSocket"] = json!({
        "name": "envoy.transport_sockets.tls",
        "typedConfig": { "@type": context, "sni": "web.example" },
    });
    cluster
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

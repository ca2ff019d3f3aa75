//! Clusters as they are at this moment: what is open, active and ejected.

use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Map, Value, json};

use super::dump;
use crate::config::{Cluster, Endpoint, Snapshot};

pub(super) fn live(snapshot: &Snapshot) -> Value {
    let clusters = snapshot
        .clusters
        .values()
        .map(|cluster| (cluster.name.to_string(), describe(cluster)));
    Value::Object(clusters.collect::<Map<_, _>>())
}

fn describe(cluster: &Cluster) -> Value {
    let state = &cluster.state;
    json!({
        "connections": read(&state.connections),
        "pending": read(&state.pending),
        "active": read(&state.active),
        "retries": read(&state.retries),
        "ejected": read(&state.ejected),
        "endpoints": cluster.endpoints.iter().map(|endpoint| of_endpoint(endpoint)).collect::<Vec<_>>(),
    })
}

fn of_endpoint(endpoint: &Endpoint) -> Value {
    let state = &endpoint.state;
    json!({
        "address": endpoint.address.to_string(),
        "workload": &*endpoint.workload.name,
        "health": dump::health(endpoint.health),
        "weight": endpoint.weight,
        "mtls": endpoint.mtls.is_some(),
        "active": read(&state.active),
        "consecutive_failures": read(&state.consecutive_failures),
        "ejections": read(&state.ejections),
    })
}

fn read(counter: &AtomicU32) -> u32 {
    counter.load(Ordering::Relaxed)
}

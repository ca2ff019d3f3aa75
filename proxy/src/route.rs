//! Finds the route of a request, and changes requests and responses as the route says.
//!
//! Pure functions over [`config::route`](crate::config::route); nothing here waits, locks or allocates unless
//! something really is rewritten. The first route that matches wins.

mod host;
mod matching;
mod redirect;
mod rewrite;

use http::HeaderMap;
use http::request::Parts;
use std::sync::Arc;

use crate::config::route::{Forward, HeaderChanges, Route, RouteTable};

pub(crate) use matching::is_grpc;
pub use redirect::{RedirectError, location};
pub use rewrite::{RewriteError, rewrite};

/// The route of a request; `None`: no virtual host is for it, or no rule matches (404, response flag `NR`).
#[must_use]
pub fn find<'t>(table: &'t RouteTable, request: &Parts) -> Option<&'t Arc<Route>> {
    let routes = match &table.hosts {
        None => &*table.routes,
        Some(hosts) => {
            let found = hosts.find(host::of(request)?)?;
            table.routes.get(found.routes.clone())?
        }
    };
    routes
        .iter()
        .find(|route| matching::matches(&route.matches, request))
}

/// Picks one of the clusters that a route splits over, by weight; returns its index.
#[must_use]
pub fn pick_cluster(forward: &Forward, rng: &mut fastrand::Rng) -> usize {
    if forward.clusters.len() == 1 {
        return 0;
    }
    let mut left = rng.u32(..forward.total_weight.max(1));
    for (index, cluster) in forward.clusters.iter().enumerate() {
        if left < cluster.weight {
            return index;
        }
        left -= cluster.weight;
    }
    0
}

/// Applies header changes: remove, set, add.
pub fn change_headers(changes: &HeaderChanges, headers: &mut HeaderMap) {
    for name in &changes.remove {
        headers.remove(name);
    }
    for (name, value) in &changes.set {
        headers.insert(name, value.clone());
    }
    for (name, value) in &changes.add {
        headers.append(name, value.clone());
    }
}

#[cfg(test)]
mod tests;

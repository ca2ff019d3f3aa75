//! Listeners where everything is subscribed: a foreign control plane names them as it likes, so a destination is looked
//! up by address, as Envoy does with `use_original_dst`: its own, else any address with its port.
//!
//! Silence is an answer here. Once the listeners have been sent, a destination that none of them is for is unknown; and
//! a pod about which nothing is said accepts what a pod without a policy accepts.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use super::State;
use super::assemble::same;
use crate::config::listener::TcpRoute;
use crate::config::store::Ask;
use crate::config::{InboundListener, InboundPort, Lookup, OutboundListener, Protocol, RouteTable};
use crate::map::Map;
use crate::xds::decode::{INBOUND, Listener};
use crate::xds::tracker::Answer;

type Lookups = Map<SocketAddr, Lookup<Arc<OutboundListener>>>;

/// A destination that the control plane has said something about: `None` until it is complete.
type Described = Map<SocketAddr, Option<Arc<OutboundListener>>>;

impl State {
    pub(super) fn assemble_all_listeners(&mut self) -> bool {
        if !self.listeners.is_answered() {
            return false;
        }
        let (described, inbound) = self.described();
        let is_refused = self.refused_more || self.refused.contains_key(INBOUND);
        let silent = self.listeners.known(INBOUND).is_none() && !is_refused;
        let by_default = silent && self.snapshot.inbound.is_none();
        let inbound = inbound.or_else(|| by_default.then(|| Arc::new(without_policy())));
        let changed = self.publish_inbound(inbound);
        let next = self.lookups(&described);
        let before = &self.snapshot.outbound;
        let unchanged = before.len() == next.len()
            && next
                .iter()
                .all(|(address, lookup)| before.get(address).is_some_and(|old| same(old, lookup)));
        if !unchanged {
            self.snapshot.outbound = next;
        }
        changed || !unchanged
    }

    /// The listeners by address; of several for one address the one whose name comes first.
    fn described(&self) -> (Described, Option<Arc<InboundListener>>) {
        let mut by_name = BTreeMap::new();
        let mut inbound = None;
        for (name, answer) in self.listeners.answers() {
            let Answer::Known(listener) = answer else {
                continue;
            };
            let complete = self.is_complete(listener);
            match &**listener {
                Listener::Inbound(listener) if complete => inbound = Some(listener.clone()),
                Listener::Inbound(_) => {}
                Listener::Outbound(listener) => {
                    let ready = complete.then(|| listener.clone());
                    by_name.insert(&**name, (listener.address, ready));
                }
            }
        }
        let mut described = Described::default();
        for (address, listener) in by_name.into_values() {
            described.entry(address).or_insert(listener);
        }
        for address in self.refused.values().flatten() {
            described.entry(*address).or_insert(None);
        }
        (described, inbound)
    }

    /// What is known of every described and every asked destination.
    fn lookups(&self, described: &Described) -> Lookups {
        let mut lookups = Lookups::default();
        let asked = self.asked.keys().filter_map(|ask| match ask {
            Ask::Outbound(address) => Some(address),
            Ask::Workload(_) => None,
        });
        let exact = described
            .keys()
            .filter(|address| !address.ip().is_unspecified());
        for address in asked.chain(exact) {
            let found = described
                .get(address)
                .or_else(|| described.get(&SocketAddr::new(any(address.ip()), address.port())));
            let lookup = match (found, self.snapshot.outbound.get(address)) {
                (None, _) if self.refused_more => continue,
                (None, _) => Lookup::Unknown,
                (Some(Some(listener)), _) => Lookup::Known(listener.clone()),
                // What was good stays until what comes after it is complete.
                (Some(None), Some(Lookup::Known(old))) => Lookup::Known(old.clone()),
                (Some(None), _) => continue,
            };
            lookups.insert(*address, lookup);
        }
        lookups
    }
}

fn any(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Mesh TLS and plaintext, on every port, with the protocol detected.
fn without_policy() -> InboundListener {
    InboundListener {
        ports: Default::default(),
        default: InboundPort {
            plaintext: true,
            protocol: Protocol::Detect {
                http: Arc::new(RouteTable::default()),
                tcp: TcpRoute {
                    clusters: vec![(INBOUND.into(), 1)],
                    by_source: false,
                },
            },
            service: None,
        },
    }
}

#[cfg(test)]
mod tests;

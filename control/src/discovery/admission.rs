//! Who may open a stream, and as whom.
//!
//! The identity is TLS's, the node id is a claim. A stream is let in if the pod that it names exists, with that address,
//! and runs under exactly the identity that was proved. What is missing or empty matches nothing.

use std::sync::Arc;

use tokio::time::Instant;
use tonic::Status;
use tulle_identity::SpiffeId;
use tulle_xds_proto::ENDS_WITH_POD;
use tulle_xds_proto::envoy::config::core::v3::{Node, node::UserAgentVersionType};

use super::account::{Account, Client, Denials};
use super::node::NodeId;
use super::refused::Refused;
use super::{Discovery, Peer};
use crate::store::{ObjectKey, Pod, World};
use crate::translate::{ClientKind, ProxyView};

/// How much of a client's own description is kept; the rest is dropped, so that nothing grows by it.
const MAX_BUILD: usize = 128;

/// A client that was let in.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) kind: ClientKind,
    pub(super) pod: ObjectKey,
    pub(super) view: Arc<ProxyView>,
    pub(super) id: SpiffeId,
    /// What it may ask for.
    pub(super) account: Arc<Account>,
    /// What software it says it is.
    pub(super) build: String,
    /// Whether it ends when it is told that its pod has finished.
    pub(super) ends_with_pod: bool,
}

/// What a world says to a claim.
#[derive(Debug, PartialEq, Eq)]
enum Finding {
    /// The pod is there and is the caller's.
    Fits,
    /// The pod is not there yet.
    NotYet(&'static str),
    /// The pod is there with another address: perhaps an older one of the same name.
    OtherAddress,
    /// The pod is another's.
    Foreign,
}

impl Discovery {
    /// Lets a client in, or says why not. Waits a little for a pod that the world does not have yet.
    pub(super) async fn admit(&self, peer: &Peer, node: Option<&Node>) -> Result<Admitted, Status> {
        let Some(id) = &peer.id else {
            self.0.metrics.refused(Refused::NoSvid);
            return Err(Status::unauthenticated(
                "a client certificate of the mesh is required on this port",
            ));
        };
        let denials = self.0.accounts.denials(peer.address.ip(), id);
        if let Some(until) = denials.pace.waits_until() {
            return Err(self.deny_all(peer, id, &denials, until));
        }
        // Before it is looked for, which may take a while: whoever does not wait for the answer has had it.
        denials.pace.spend(1);
        let admitted = self.find(peer, id, node).await;
        if admitted.is_ok() {
            denials.pace.give_back(1);
        }
        admitted
    }

    /// Lets in nobody for now who has been denied too many streams: each costs a search.
    fn deny_all(&self, peer: &Peer, id: &SpiffeId, denials: &Denials, until: Instant) -> Status {
        self.0.metrics.refused(Refused::TooManyDenied);
        if let Some(left_out) = denials.told.pass() {
            tracing::warn!(client.addr = %peer.address, client.id = %id, left_out,
                "a client was denied too many discovery streams, and gets none for now");
        }
        let left = (until - Instant::now()).as_secs_f64();
        Status::resource_exhausted(format!(
            "{id} was denied too many streams here; try again in {left:.1} s"
        ))
    }

    async fn find(
        &self,
        peer: &Peer,
        id: &SpiffeId,
        node: Option<&Node>,
    ) -> Result<Admitted, Status> {
        let node =
            node.ok_or_else(|| self.deny(Refused::NoNode, "the first request names no node"))?;
        let mut worlds = self.0.worlds.subscribe();
        let domain = worlds.borrow().mesh().cluster_domain.clone();
        let claim =
            NodeId::parse(&node.id, &domain).map_err(|error| self.deny(Refused::BadNode, error))?;
        if id.namespace() != claim.namespace {
            return Err(self.deny(
                Refused::ForeignPod,
                format_args!("pod {}/{} is not {}", claim.namespace, claim.pod, id),
            ));
        }
        let key = ObjectKey::new(claim.namespace.as_str(), claim.pod.as_str());
        let settled = worlds.wait_for(|world| {
            matches!(
                find(world, &key, &claim, id),
                Finding::Fits | Finding::Foreign
            )
        });
        let world = match tokio::time::timeout(self.0.limits.pod_wait, settled).await {
            Ok(Ok(world)) => world.clone(),
            Ok(Err(_)) => return Err(Status::unavailable("the control plane is shutting down")),
            Err(_) => self.world(),
        };
        match (find(&world, &key, &claim, id), world.pod(&key)) {
            (Finding::Fits, Some(pod)) => Ok(Admitted {
                kind: claim.kind,
                view: Arc::new(ProxyView::of_pod(&world, claim.kind, pod)),
                account: self
                    .0
                    .accounts
                    .of(Client::of(&world, peer.address.ip(), id, &key)),
                pod: key,
                id: id.clone(),
                build: build(node),
                ends_with_pod: node.client_features.iter().any(|it| it == ENDS_WITH_POD),
            }),
            (Finding::Fits | Finding::Foreign, _) => Err(self.deny(
                Refused::ForeignPod,
                format_args!("pod {key} does not run as {}", id),
            )),
            (Finding::OtherAddress, _) => Err(self.deny(
                Refused::ForeignPod,
                format_args!("pod {key} does not have address {}", claim.ip),
            )),
            (Finding::NotYet(why), _) => {
                self.0.metrics.refused(Refused::NotYet);
                Err(Status::unavailable(format!("pod {key}: {why}; try again")))
            }
        }
    }

    fn deny(&self, refused: Refused, detail: impl std::fmt::Display) -> Status {
        self.0.metrics.refused(refused);
        Status::permission_denied(detail.to_string())
    }
}

/// Whether a pod runs as an identity.
pub(super) fn runs_as(pod: &Pod, id: &SpiffeId) -> bool {
    *pod.key.namespace == *id.namespace() && *pod.service_account == *id.service_account()
}

fn find(world: &World, key: &ObjectKey, claim: &NodeId, id: &SpiffeId) -> Finding {
    let Some(pod) = world.pod(key) else {
        let why = if world.synced() {
            "not known"
        } else {
            "the control plane is still starting"
        };
        return Finding::NotYet(why);
    };
    if !runs_as(pod, id) {
        Finding::Foreign
    } else if pod.ips.is_empty() {
        Finding::NotYet("it has no address yet")
    } else if !pod.ips.contains(&claim.ip) {
        Finding::OtherAddress
    } else if !world.synced() {
        Finding::NotYet("the control plane is still starting")
    } else {
        Finding::Fits
    }
}

fn build(node: &Node) -> String {
    let version = match &node.user_agent_version_type {
        Some(UserAgentVersionType::UserAgentVersion(version)) => version.as_str(),
        _ => "",
    };
    format!("{} {version}", node.user_agent_name)
        .trim()
        .chars()
        .take(MAX_BUILD)
        .collect()
}

#[cfg(test)]
mod tests;

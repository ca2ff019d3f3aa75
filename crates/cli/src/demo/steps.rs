//! The story of the demo: what a mesh promises, each promise held against a measurement.

mod failures;
mod identity;
mod rotation;
mod secrecy;
mod traffic;

use std::future::Future;
use std::pin::Pin;

use super::report::Evidence;
use super::stage::Stage;

type Running<'a> = Pin<Box<dyn Future<Output = anyhow::Result<()>> + 'a>>;

/// A step: its name, what it promises, and how that is measured.
pub(super) struct Step {
    pub(super) name: &'static str,
    pub(super) promise: &'static str,
    pub(super) run: for<'a> fn(&'a Stage, &'a mut Evidence) -> Running<'a>,
}

/// Requests a second of the load generator.
const RATE: u32 = 300;

/// Every step, in order.
pub(super) const ALL: [Step; 11] = [
    Step {
        name: "identities",
        promise: "every sidecar has a short-lived certificate that names its workload",
        run: |stage, evidence| Box::pin(identity::identities(stage, evidence)),
    },
    Step {
        name: "mutual TLS",
        promise: "nothing travels in the clear, and nobody without an identity gets in",
        run: |stage, evidence| Box::pin(secrecy::mutual_tls(stage, evidence)),
    },
    Step {
        name: "protocols",
        promise: "HTTP, gRPC and a TCP service that speaks first, all unmodified",
        run: |stage, evidence| Box::pin(traffic::protocols(stage, evidence)),
    },
    Step {
        name: "balancing",
        promise: "requests of one connection spread over all pods",
        run: |stage, evidence| Box::pin(traffic::balancing(stage, evidence)),
    },
    Step {
        name: "canary",
        promise: "editing an HTTPRoute moves the split under load",
        run: |stage, evidence| Box::pin(traffic::canary(stage, evidence)),
    },
    Step {
        name: "retries",
        promise: "a pod that fails is hidden from its callers",
        run: |stage, evidence| Box::pin(failures::retries(stage, evidence)),
    },
    Step {
        name: "exactly once",
        promise: "a POST that was sent is never repeated",
        run: |stage, evidence| Box::pin(failures::exactly_once(stage, evidence)),
    },
    Step {
        name: "SIGTERM",
        promise: "a pod ends under GET and POST, and no request fails",
        run: |stage, evidence| Box::pin(failures::sigterm(stage, evidence)),
    },
    Step {
        name: "SIGKILL",
        promise: "app and sidecar are killed together under GET, and no request fails",
        run: |stage, evidence| Box::pin(failures::sigkill(stage, evidence)),
    },
    Step {
        name: "outage",
        promise: "the control plane is killed and traffic does not notice",
        run: |stage, evidence| Box::pin(failures::outage(stage, evidence)),
    },
    Step {
        name: "rotation",
        promise: "the root and the certificates under it are replaced under load",
        run: |stage, evidence| Box::pin(rotation::rotation(stage, evidence)),
    },
];

//! Sidecar injection: decide and patch, in files and where the API server asks.
//!
//! One library serves `tulle inject` (files), the sandbox, and `tulle injector`, which [`run`] is: the admission webhook. [`decide`] is a pure table over the
//! few facts that matter; [`patch`] edits the raw JSON of the pod and records every edit as RFC 6902, so that fields
//! unknown to our types survive. [`Reviewer`] answers the API server's reviews with both. Invariants: injecting twice is
//! injecting once, and no input makes it panic.

mod app;
mod config;
mod decide;
mod document;
mod error;
mod events;
#[cfg(test)]
mod hand_written;
mod located;
mod namespaces;
mod options;
mod patch;
#[cfg(test)]
mod pods;
pub mod quantity;
mod reconcile;
mod review;
mod revision;
mod selector;
mod warning;
mod webhook;

pub use app::{AccessLog, Args, Injector, LimitArgs, PullPolicy, SidecarArgs, run};
pub use config::{HookKey, InjectorConfig, Resources};
pub use decide::{Decision, InjectReason, Namespace, SkipReason};
pub use document::{inject_document, inject_pod};
pub use error::InjectError;
pub use json_patch::Patch;
pub use located::Located;
pub use review::{Flaw, MAX_REVIEW, Refusal, Reviewed, Reviewer, Verdict};
pub use revision::{Revision, RevisionError};
pub use selector::{Selector, SelectorError};
pub use warning::{Warning, WarningReason};

/// What injection did to one document.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Whether a sidecar was added, and why or why not.
    pub decision: Decision,
    /// The edits, as RFC 6902; empty when nothing was injected.
    pub patch: Patch,
    /// The document after the edits.
    pub document: serde_json::Value,
    /// What an operator should know although the injection succeeded, such as an annotation that nobody reads.
    pub warnings: Vec<Warning>,
}

impl Outcome {
    fn untouched(decision: Decision, document: serde_json::Value) -> Self {
        Self {
            decision,
            patch: Patch(Vec::new()),
            document,
            warnings: Vec::new(),
        }
    }
}

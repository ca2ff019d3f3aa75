//! What a pod says in vain, or should know: it is let in all the same.

use std::fmt;

tulle_runtime::named! {
    /// What a warning is about.
    pub enum WarningReason {
        /// An annotation has a value that is ignored.
        Value = "value",
        /// An annotation is none of ours, though it is named like them.
        Unknown = "unknown",
        /// A limit allows more than the sidecar's container has.
        Limit = "limit",
        /// Annotations for Prometheus cannot be understood.
        Scrape = "scrape",
        /// The sidecar keeps a pod that is to end from completing.
        Unending = "unending",
        /// A probe or hook of a native sidecar of the pod's own is for a time when ours, which is none, does not run.
        Apart = "apart",
        /// The pod's resolver may not know where the control plane is.
        Resolver = "resolver",
        /// The namespace forbids what capture needs.
        PodSecurity = "pod_security",
        /// The webhook is asked about what is no pod.
        NotAPod = "not_a_pod",
    }
}

impl WarningReason {
    /// Whether it is about annotations, which are for the author of the pod's workload to correct.
    #[must_use]
    pub fn is_annotation(self) -> bool {
        !matches!(self, Self::Resolver | Self::PodSecurity | Self::NotAPod)
    }
}

/// A warning to the author of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// What it is about.
    pub reason: WarningReason,
    /// What is wrong, and the remedy.
    pub message: String,
}

impl Warning {
    pub(crate) fn new(reason: WarningReason, message: String) -> Self {
        Self { reason, message }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// What the author of a workload is told: the warnings about annotations, in one line.
pub(crate) fn of_annotations(warnings: &[Warning]) -> String {
    let ours = warnings.iter().filter(|it| it.reason.is_annotation());
    let words: Vec<_> = ours.map(|it| it.message.as_str()).collect();
    words.join("; ")
}

//! What a pod says in vain, or should know: it is let in all the same.

use std::fmt;

use crate::events::MAX_MESSAGE;
use crate::review::tidy;

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
    in_a_line(warnings.iter().filter(|it| it.reason.is_annotation()))
}

/// Warnings in one line, no longer than an Event's: values of annotations are part of them, and may be long.
pub(crate) fn in_a_line<'a>(warnings: impl IntoIterator<Item = &'a Warning>) -> String {
    let words: Vec<_> = warnings.into_iter().map(|it| &*it.message).collect();
    tidy(&words.join("; "), MAX_MESSAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_warnings_is_no_longer_than_is_read_whoever_wrote_the_annotations() {
        let of = |reason, message: &str| Warning::new(reason, message.to_owned());
        let few = [
            of(WarningReason::Unknown, "a is not known"),
            of(WarningReason::Resolver, "no address"),
            of(WarningReason::Value, "b is ignored"),
        ];
        assert_eq!(in_a_line(&few), "a is not known; no address; b is ignored");
        assert_eq!(of_annotations(&few), "a is not known; b is ignored");
        let long = [of(WarningReason::Unknown, &"ü".repeat(1 << 20))];
        let many = vec![few[0].clone(); 1 << 16];
        for warnings in [&long[..], &many] {
            for line in [in_a_line(warnings), of_annotations(warnings)] {
                assert!(
                    (MAX_MESSAGE - 2..=MAX_MESSAGE).contains(&line.len()),
                    "{}",
                    line.len()
                );
            }
        }
    }
}

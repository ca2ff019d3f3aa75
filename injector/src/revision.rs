//! Revisions: control planes side by side, each with its injector, its address and its pods.

use std::fmt;
use std::str::FromStr;

use tulle_runtime::names::{
    CONTROL_DNS_NAME, CONTROL_NAMESPACE, DEFAULT_REVISION, INJECTOR, ports,
};

/// Longest revision with which names of ours are DNS labels.
const MAX_NAME: usize = 63 - (INJECTOR.len() + 1);

/// The name of a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revision(String);

/// A name that no revision can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name:?} cannot be a revision: write lower-case letters, digits and `-`, at most {MAX_NAME}, no `-` first or last, \
     such as `canary` or `1-4`"
)]
pub struct RevisionError {
    name: String,
}

impl Revision {
    /// Its name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is the one that serves whoever names none.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.0 == DEFAULT_REVISION
    }

    /// What is called `name` of the default revision.
    #[must_use]
    pub fn of(&self, name: &str) -> String {
        if self.is_default() {
            name.to_owned()
        } else {
            format!("{name}-{}", self.0)
        }
    }

    /// `host:port` of its control plane in a cluster of that domain. The name is whole, so that it is found whatever a pod's DNS
    /// settings add to names, and by one question.
    #[must_use]
    pub fn control_address(&self, cluster_domain: &str) -> String {
        let service = CONTROL_DNS_NAME.split('.').next().unwrap_or_default();
        let service = self.of(service);
        let domain = cluster_domain.trim_end_matches('.');
        format!("{service}.{CONTROL_NAMESPACE}.svc.{domain}.:{}", ports::XDS)
    }
}

impl Default for Revision {
    fn default() -> Self {
        Self(DEFAULT_REVISION.to_owned())
    }
}

impl FromStr for Revision {
    type Err = RevisionError;

    fn from_str(name: &str) -> Result<Self, RevisionError> {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let good = (1..=MAX_NAME).contains(&name.len())
            && name.bytes().all(inner)
            && !name.starts_with('-')
            && !name.ends_with('-');
        if good {
            Ok(Self(name.to_owned()))
        } else {
            let name = name.to_owned();
            Err(RevisionError { name })
        }
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_one_has_no_suffix_and_others_do() {
        let default = Revision::default();
        assert_eq!(
            default.control_address("cluster.local"),
            format!("{CONTROL_DNS_NAME}.cluster.local.:{}", ports::XDS)
        );
        assert_eq!(default.of(INJECTOR), INJECTOR);
        let canary: Revision = "canary".parse().expect("a name");
        assert_eq!(
            canary.control_address("k8s.example."),
            "tulle-control-canary.tulle-system.svc.k8s.example.:15012"
        );
        assert_eq!(canary.of(INJECTOR), "tulle-injector-canary");
    }

    #[test]
    fn what_cannot_be_part_of_a_dns_name_is_refused_with_its_remedy() {
        for good in ["a", "1-4", "default", &"r".repeat(MAX_NAME)] {
            assert!(good.parse::<Revision>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "-a",
            "a-",
            "A",
            "a.b",
            "a_b",
            "a/b",
            &"r".repeat(MAX_NAME + 1),
        ] {
            let error = bad.parse::<Revision>().expect_err(bad).to_string();
            assert!(
                error.starts_with(&format!("{bad:?} cannot be a revision: write")),
                "{error}"
            );
        }
    }
}

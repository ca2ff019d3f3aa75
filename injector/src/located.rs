//! Where the control plane is by number, for pods whose resolver knows no names of the cluster.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::PodSpec;
use parking_lot::RwLock;

/// Between two looks. The address of a Service stays as long as the Service does.
const PAUSE: Duration = Duration::from_secs(30);
/// As long as it is not known.
const RETRY: Duration = Duration::from_secs(1);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(5);

/// Shared: whoever follows the name tells all that have a copy.
#[derive(Clone, Default)]
pub struct Located(Arc<RwLock<Option<SocketAddr>>>);

impl Located {
    /// The address, once it is known.
    #[must_use]
    pub fn at(&self) -> Option<SocketAddr> {
        *self.0.read()
    }

    /// Looks up `HOST:PORT` again and again, for ever. What was known stays while nobody answers.
    pub async fn follow(self, address: String) {
        loop {
            let asked = tokio::time::timeout(ANSWER, tokio::net::lookup_host(&address)).await;
            if let Ok(Ok(found)) = asked {
                self.put(found);
            }
            let pause = if self.at().is_some() { PAUSE } else { RETRY };
            tokio::time::sleep(pause).await;
        }
    }

    /// Takes one of the addresses: of a cluster with both families any will do, and the same each time.
    fn put(&self, found: impl Iterator<Item = SocketAddr>) {
        if let Some(first) = found.min_by_key(|it| (it.is_ipv6(), *it)) {
            *self.0.write() = Some(first);
        }
    }
}

/// Whether a pod's resolver may be one outside of the cluster. See
/// <https://kubernetes.io/docs/concepts/services-networking/dns-pod-service/#pod-s-dns-policy>.
pub(crate) fn is_needed(pod: &PodSpec) -> bool {
    matches!(pod.dns_policy.as_deref(), Some("Default" | "None"))
}

impl PartialEq for Located {
    fn eq(&self, other: &Self) -> bool {
        self.at() == other.at()
    }
}

impl Eq for Located {}

impl fmt::Debug for Located {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Located").field(&self.at()).finish()
    }
}

impl From<SocketAddr> for Located {
    fn from(address: SocketAddr) -> Self {
        Self(Arc::new(RwLock::new(Some(address))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_known_stays_and_one_of_several_is_always_the_same() {
        let located = Located::default();
        let addresses = |texts: &[&str]| -> Vec<SocketAddr> {
            texts
                .iter()
                .map(|it| it.parse().expect("an address"))
                .collect()
        };
        for (found, expected) in [
            (&[][..], None),
            (&["[fd00::1]:15012"], Some("[fd00::1]:15012")),
            (
                &["[fd00::1]:15012", "10.0.0.2:15012", "10.0.0.1:15012"],
                Some("10.0.0.1:15012"),
            ),
            (&[], Some("10.0.0.1:15012")),
        ] {
            located.put(addresses(found).into_iter());
            let expected = expected.map(|it| it.parse().expect("an address"));
            assert_eq!(located.at(), expected);
        }
    }

    #[tokio::test]
    async fn a_name_is_followed_to_its_address() {
        let told = Located::default();
        let known = async {
            while told.at().is_none() {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = told.clone().follow("127.0.0.1:15012".to_owned()) => {}
            () = known => {}
            () = tokio::time::sleep(ANSWER) => {}
        }
        assert_eq!(told.at(), "127.0.0.1:15012".parse().ok());
    }
}

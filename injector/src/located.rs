//! Where the control plane is by number, for pods whose resolver knows no names of the cluster.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::PodSpec;
use parking_lot::RwLock;

/// Between two looks. The address of a Service stays as long as the Service does.
const PAUSE: Duration = Duration::from_secs(30);
/// The first of those while it is not known; each is twice as long as the last, until they are as long as others.
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
        let lookup = async |address: String| {
            let found = tokio::net::lookup_host(address).await?;
            Ok(found.collect())
        };
        self.follow_by(&address, lookup).await;
    }

    async fn follow_by<F>(self, address: &str, lookup: impl Fn(String) -> F)
    where
        F: Future<Output = io::Result<Vec<SocketAddr>>>,
    {
        let mut retry = RETRY;
        loop {
            let asked = tokio::time::timeout(ANSWER, resolve(address, &lookup)).await;
            let asked = asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            match asked {
                Ok(found) => self.put(found.into_iter()),
                // Names may come a little later than the injector.
                Err(error) if self.at().is_none() && retry == PAUSE => {
                    tracing::warn!(
                        address, %error,
                        "the control plane is not found by its name, and sidecars of pods with a resolver of their own will \
                         not find it: correct the cluster's domain, or name an address (--control-address)"
                    );
                }
                Err(_) => {}
            }
            let pause = if self.at().is_some() { PAUSE } else { retry };
            tokio::time::sleep(pause).await;
            retry = (2 * retry).min(PAUSE);
        }
    }

    /// Takes one of the addresses: of a cluster with both families any will do, and the same each time.
    fn put(&self, found: impl Iterator<Item = SocketAddr>) {
        if let Some(first) = found.min_by_key(|it| (it.is_ipv6(), *it)) {
            *self.0.write() = Some(first);
        }
    }
}

/// Where an address leads, as sidecars find it: a Service's whole name has the cluster's domain, which whoever wrote it may
/// have wrong. Then the domains that the resolver knows are tried.
async fn resolve<F>(address: &str, lookup: impl Fn(String) -> F) -> io::Result<Vec<SocketAddr>>
where
    F: Future<Output = io::Result<Vec<SocketAddr>>>,
{
    let whole = lookup(address.to_owned()).await;
    match (without_domain(address), &whole) {
        (Some(short), Err(_)) => lookup(short).await.or(whole),
        _ => whole,
    }
}

/// `NAME.NS.svc:PORT` of `NAME.NS.svc.DOMAIN.:PORT`.
fn without_domain(address: &str) -> Option<String> {
    let (host, port) = address.rsplit_once(':')?;
    let (service, _) = host.strip_suffix('.')?.split_once(".svc.")?;
    Some(format!("{service}.svc:{port}"))
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
    use std::sync::atomic::AtomicU32;
    use std::sync::atomic::Ordering::Relaxed;

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

    #[tokio::test(start_paused = true)]
    async fn a_service_is_found_whatever_domain_its_name_has() {
        const AT: &str = "10.96.3.4:15012";
        let whole = "tulle-control.tulle-system.svc.cluster.local.:15012";
        for (known, address, expected) in [
            (whole, whole, Some(AT)),
            ("tulle-control.tulle-system.svc:15012", whole, Some(AT)),
            ("tulle-control.tulle-system.svc.corp.:15012", whole, None),
            ("control.example:1", "control.example.:1", None),
        ] {
            let lookup = async |asked: String| match asked == known {
                true => Ok(vec![AT.parse().expect("an address")]),
                false => Err(io::ErrorKind::NotFound.into()),
            };
            let located = Located::default();
            let following = located.clone().follow_by(address, lookup);
            let given_up = tokio::time::timeout(PAUSE, following).await;
            assert!(given_up.is_err(), "it follows for ever");
            let expected = expected.map(|it| it.parse().expect("an address"));
            assert_eq!(located.at(), expected, "{known}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn while_nobody_knows_a_name_it_is_asked_for_ever_less_often() {
        let asked = AtomicU32::new(0);
        let lookup = async |_| {
            asked.fetch_add(1, Relaxed);
            Err(io::ErrorKind::NotFound.into())
        };
        let following = Located::default().follow_by("control.example:1", lookup);
        let given_up = tokio::time::timeout(20 * PAUSE, following).await;
        assert!(given_up.is_err(), "it follows for ever");
        let asked = asked.into_inner();
        assert!((20..30).contains(&asked), "{asked}");
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

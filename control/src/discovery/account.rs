//! What one client may ask for: the streams that it has open, and the work that it makes.
//!
//! Whom to charge is a question of what can be proved. Where a connection comes from a pod's own address, as it does
//! without network address translation, the client is that address and its identity, whatever pod its node id claims: so
//! nobody spends what a sibling, a pod of the same service account, may spend. Elsewhere many pods may share the address,
//! and the claimed pod is all that tells them apart. An identity alone would be no key: thousands of honest pods have the
//! same one.
//!
//! An account outlives its streams until all is paid for, so that coming back does not make a client any richer.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tulle_identity::SpiffeId;
use tulle_runtime::gate::Gate;
use tulle_xds_proto::ResourceType;

use super::Limits;
use super::admission::runs_as;
use crate::limit::{Kept, Pace};
use crate::store::{ObjectKey, World};

/// What a new stream costs, in names.
pub(super) const OPENING: u32 = 50;

/// Who is charged.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Client {
    address: IpAddr,
    id: SpiffeId,
    /// The pod that it says it is, where its address does not say so.
    claims: Option<ObjectKey>,
}

impl Client {
    /// Whoever speaks from `address` under a proved identity and says that it is `pod`.
    pub(super) fn of(world: &World, address: IpAddr, id: &SpiffeId, pod: &ObjectKey) -> Self {
        let address = address.to_canonical();
        let there = world.pod_by_ip(address).filter(|pod| !pod.host_network);
        let is_known = there.is_some_and(|pod| runs_as(pod, id));
        Self {
            address,
            id: id.clone(),
            claims: (!is_known).then(|| pod.clone()),
        }
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.id, self.address)
    }
}

/// All accounts.
#[derive(Debug)]
pub(super) struct Accounts {
    limits: Limits,
    all: Kept<Client, Account>,
    denials: Kept<(IpAddr, SpiffeId), Denials>,
}

/// The streams that an identity at an address was denied, whatever pods it named.
#[derive(Debug)]
pub(super) struct Denials {
    pub(super) pace: Pace,
    /// Lines about having been denied too many.
    pub(super) told: Gate,
}

/// What a client has, and what it owes.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) client: Client,
    pub(super) pace: Pace,
    /// For whoever of its streams has much to do.
    pub(super) turn: Arc<Semaphore>,
    /// Open streams.
    streams: Mutex<usize>,
    /// Lines about streams that come and go, or would.
    pub(super) streams_told: Gate,
    /// Lines about having to wait.
    pub(super) waits_told: Gate,
    /// Lines about types that are not served.
    pub(super) unserved_told: Gate,
    refusals_told: Mutex<BTreeMap<ResourceType, Arc<Gate>>>,
}

/// A stream that a client has open, for as long as it lives.
#[derive(Debug)]
pub(super) struct OpenStream(Arc<Account>);

impl Accounts {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            all: Kept::default(),
            denials: Kept::default(),
        }
    }

    /// What an identity at an address was denied: it may try as often as it might open streams.
    pub(super) fn denials(&self, address: IpAddr, id: &SpiffeId) -> Arc<Denials> {
        let Limits {
            names_a_second,
            names_at_once,
            ..
        } = self.limits;
        let make = || Denials {
            pace: Pace::of_each(
                Duration::from_secs(1) * OPENING / names_a_second.max(1),
                (names_at_once / OPENING).max(1),
            ),
            told: Gate::default(),
        };
        let whose = (address.to_canonical(), id.clone());
        self.denials.of(&whose, make, |it| !it.pace.is_even())
    }

    /// The account of a client.
    pub(super) fn of(&self, client: Client) -> Arc<Account> {
        let make = || Account {
            client: client.clone(),
            pace: Pace::new(self.limits.names_a_second, self.limits.names_at_once),
            turn: Arc::new(Semaphore::new(1)),
            streams: Mutex::new(0),
            streams_told: Gate::default(),
            waits_told: Gate::default(),
            unserved_told: Gate::default(),
            refusals_told: Mutex::default(),
        };
        self.all
            .of(&client, make, |account| !account.pace.is_even())
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.all.len()
    }
}

impl Account {
    /// One more stream, if it has fewer than `most`.
    pub(super) fn open(self: &Arc<Self>, most: usize) -> Option<OpenStream> {
        let mut streams = self.streams.lock();
        if *streams >= most {
            return None;
        }
        *streams += 1;
        Some(OpenStream(self.clone()))
    }

    /// The gate for lines about its refusals of a type.
    pub(super) fn refusals_told(&self, kind: ResourceType) -> Arc<Gate> {
        self.refusals_told.lock().entry(kind).or_default().clone()
    }

    /// Lines about its refusals that were left out and that none will tell of any more.
    fn refusals_left_out(&self) -> u64 {
        let gates = self.refusals_told.lock();
        gates.values().map(|gate| gate.close()).sum()
    }
}

impl std::ops::Deref for OpenStream {
    type Target = Account;

    fn deref(&self) -> &Account {
        &self.0
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let last = {
            let mut streams = self.0.streams.lock();
            *streams -= 1;
            *streams == 0
        };
        let left_out = if last { self.0.refusals_left_out() } else { 0 };
        if left_out > 0 {
            tracing::warn!(client = %self.0.client, left_out,
                "lines about configuration that a proxy refused were left out");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::tests::harness::pod;
    use crate::store::{Event, MeshSettings, Object, Store};

    const FEW: usize = 1024;

    fn client(world: &World, address: [u8; 4], account: &str, claims: &str) -> Client {
        let id = format!("spiffe://cluster.local/ns/shop/sa/{account}");
        let id = SpiffeId::parse(&id).expect("an id");
        Client::of(world, address.into(), &id, &ObjectKey::new("shop", claims))
    }

    fn world() -> Arc<World> {
        let (store, mut writer) = Store::new(MeshSettings::default());
        let pods = [
            ("web-1", "web", 1),
            ("web-2", "web", 2),
            ("admin-1", "admin", 3),
        ];
        let pods = pods.map(|(name, account, last)| {
            Event::Apply(Object::Pod(pod("shop", name, account, [10, 0, 0, last])))
        });
        writer.apply(pods.to_vec());
        store.world()
    }

    #[test]
    fn a_pods_address_says_who_it_is_and_elsewhere_the_claim_counts() {
        let world = world();
        let own = client(&world, [10, 0, 0, 1], "web", "web-1");
        for (name, other, same) in [
            (
                "a pod that says it is its sibling",
                client(&world, [10, 0, 0, 1], "web", "web-2"),
                true,
            ),
            (
                "the sibling itself",
                client(&world, [10, 0, 0, 2], "web", "web-2"),
                false,
            ),
            (
                "another identity at the address",
                client(&world, [10, 0, 0, 1], "admin", "admin-1"),
                false,
            ),
        ] {
            assert_eq!(own == other, same, "{name}");
        }
        let node = [192, 168, 0, 1];
        let (one, two) = (
            client(&world, node, "web", "web-1"),
            client(&world, node, "web", "web-2"),
        );
        assert_ne!(one, two, "pods behind one address that is no pod's");
    }

    #[tokio::test(start_paused = true)]
    async fn an_account_stays_until_all_is_paid_for() {
        let world = world();
        let accounts = Accounts::new(Limits {
            names_a_second: 10,
            names_at_once: 10,
            ..Limits::default()
        });
        let own = || client(&world, [10, 0, 0, 1], "web", "web-1");
        let account = accounts.of(own());
        let stream = account.open(1).expect("the first");
        assert!(account.open(1).is_none());
        account.pace.spend(100);
        drop((account, stream));
        let crowd = |from: usize| {
            for i in from..from + FEW {
                let address = u32::try_from(i).expect("small").to_be_bytes();
                accounts.of(client(&world, address, "web", "web-1"));
            }
        };
        crowd(0);
        crowd(FEW);
        assert!(
            accounts.of(own()).pace.waits_until().is_some(),
            "still in debt"
        );
        assert!(accounts.len() <= FEW + 1, "the others are gone");
        tokio::time::advance(Duration::from_secs(60)).await;
        crowd(2 * FEW);
        assert!(accounts.of(own()).open(1).is_some());
        assert!(accounts.of(own()).pace.is_even());
    }
}

//! Whatever happens in whatever order: once everything owed was sent, the client has exactly what it wants.

use std::collections::BTreeSet;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

#[derive(Clone, Debug)]
enum Step {
    Put(usize, u8),
    Delete(usize),
    Subscribe(usize),
    Unsubscribe(usize),
    Wildcard,
    NoWildcard,
    Send { accept: bool },
    Reconnect,
}

fn step() -> impl Strategy<Value = Step> {
    let name = 0..NAMES.len();
    prop_oneof![
        4 => (name.clone(), 0..3u8).prop_map(|(name, content)| Step::Put(name, content)),
        2 => name.clone().prop_map(Step::Delete),
        3 => name.clone().prop_map(Step::Subscribe),
        2 => name.prop_map(Step::Unsubscribe),
        1 => Just(Step::Wildcard),
        1 => Just(Step::NoWildcard),
        4 => any::<bool>().prop_map(|accept| Step::Send { accept }),
        1 => Just(Step::Reconnect),
    ]
}

/// A client and its server.
struct Pair {
    kind: ResourceType,
    shelf: BTreeMap<Name, Arc<Encoded>>,
    server: Subscription,
    wants: BTreeSet<Name>,
    wildcard: bool,
    holds: BTreeMap<Name, Version>,
    nonce: usize,
}

impl Pair {
    fn new(kind: ResourceType) -> Self {
        let mut pair = Self {
            kind,
            shelf: BTreeMap::new(),
            server: Subscription::new(kind, 100),
            wants: BTreeSet::new(),
            wildcard: false,
            holds: BTreeMap::new(),
            nonce: 0,
        };
        pair.connect();
        pair
    }

    fn connect(&mut self) {
        self.server = Subscription::new(self.kind, 100);
        let mut subscribe: Vec<Name> = self.wants.iter().cloned().collect();
        if self.wildcard {
            subscribe.push(WILDCARD.into());
        }
        // A first request without names would mean all.
        if subscribe.is_empty() {
            self.wants.insert(NAMES[0].into());
            subscribe.push(NAMES[0].into());
        }
        let initial_versions = self
            .holds
            .iter()
            .map(|(name, version)| (name.clone(), Some(*version)))
            .collect();
        self.ask(Ask {
            subscribe,
            initial_versions,
            ..Ask::default()
        });
    }

    fn ask(&mut self, ask: Ask) {
        let all = || self.shelf.keys().cloned().collect();
        self.server.apply(ask, all).expect("within the limit");
    }

    fn changed(&mut self, name: &Name) {
        self.server.changed(name, Instant::now());
    }

    fn take(&mut self, step: Step) {
        let name = |index: usize| Name::from(NAMES[index]);
        match step {
            Step::Put(index, content) => {
                let encoded = Encoded::new(self.kind, Bytes::copy_from_slice(&[content]));
                self.shelf.insert(name(index), Arc::new(encoded));
                self.changed(&name(index));
            }
            Step::Delete(index) => {
                self.shelf.remove(&name(index));
                self.changed(&name(index));
            }
            Step::Subscribe(index) => {
                self.wants.insert(name(index));
                self.ask(Ask {
                    subscribe: vec![name(index)],
                    ..Ask::default()
                });
            }
            Step::Unsubscribe(index) => {
                self.wants.remove(&name(index));
                if !self.wildcard {
                    self.holds.remove(&name(index));
                }
                self.ask(Ask {
                    unsubscribe: vec![name(index)],
                    ..Ask::default()
                });
            }
            Step::Wildcard => {
                self.wildcard = true;
                self.ask(Ask {
                    subscribe: vec![WILDCARD.into()],
                    ..Ask::default()
                });
            }
            Step::NoWildcard => {
                self.wildcard = false;
                self.holds.retain(|name, _| self.wants.contains(name));
                self.ask(Ask {
                    unsubscribe: vec![WILDCARD.into()],
                    ..Ask::default()
                });
            }
            Step::Send { accept } => self.send(accept),
            Step::Reconnect => self.connect(),
        }
    }

    /// Everything that is owed goes over; a client that refuses does so after it has taken what it can.
    fn send(&mut self, accept: bool) {
        for phase in [Phase::Make, Phase::Break] {
            while let Some(batch) = self
                .server
                .take(phase, 60, |name, _| self.shelf.get(name).cloned())
            {
                self.nonce += 1;
                let nonce = self.nonce.to_string();
                self.server.sent(nonce.clone(), String::new(), &batch);
                self.holds.extend(
                    batch
                        .resources
                        .iter()
                        .map(|(name, encoded)| (name.clone(), encoded.version)),
                );
                for name in &batch.removed {
                    self.holds.remove(name);
                }
                let error = (!accept).then(|| "no".to_owned());
                self.ask(Ask {
                    reply: Some(Reply { nonce, error }),
                    ..Ask::default()
                });
            }
        }
    }

    fn check(&mut self) {
        self.send(true);
        assert!(!self.server.is_owing());
        let wanted = |name: &Name| self.wildcard || self.wants.contains(name);
        let shelf = self.shelf.iter().filter(|(name, _)| wanted(name));
        let expected: BTreeMap<_, _> = shelf
            .map(|(name, encoded)| (name.clone(), encoded.version))
            .collect();
        assert_eq!(self.holds, expected);
    }
}

proptest! {
    #[test]
    fn a_client_ends_up_with_what_it_wants(steps in prop::collection::vec(step(), 0..40)) {
        for kind in [ResourceType::Cluster, ResourceType::Listener] {
            let mut pair = Pair::new(kind);
            for step in steps.clone() {
                pair.take(step);
            }
            pair.check();
        }
    }
}

//! A client's conversation without a connection, for fuzz targets: requests in as they come from the wire, responses out.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use tonic::Status;
use tulle_xds_proto::ResourceType;
use tulle_xds_proto::prost::Message as _;

use super::resource::{Encoded, Name};
use super::subscription::{Phase, Subscription};
use super::variant::{Change, Delta, Full, Refusal, Variant};

/// Explicit subscriptions of one type.
const LIMIT: usize = 64;
/// Bytes of one response.
const BUDGET: usize = 256;

/// What exists: the content of a resource.
type Shelf = fn(ResourceType, &str) -> Option<&'static [u8]>;

/// Both ends of what one response says.
#[derive(Debug)]
pub struct Told {
    /// Type of the resources.
    pub kind: ResourceType,
    /// Names of those that it brings.
    pub resources: Vec<String>,
    /// Names that it says do not exist.
    pub removed: Vec<String>,
    /// The response on the wire.
    pub bytes: Vec<u8>,
}

/// One stream's books.
#[derive(Debug)]
pub struct Conversation {
    full: bool,
    subscriptions: BTreeMap<ResourceType, Subscription>,
    nonce: u64,
}

impl Conversation {
    /// Of the state-of-the-world variant, or of the incremental one.
    #[must_use]
    pub fn new(full: bool) -> Self {
        Self {
            full,
            subscriptions: BTreeMap::new(),
            nonce: 0,
        }
    }

    /// Takes a request in; `all` are the names of all resources of a type that can be asked for as a whole.
    ///
    /// # Errors
    /// What ends the stream.
    pub fn request(&mut self, bytes: &[u8], all: &[&str]) -> Result<(), Status> {
        if self.full {
            self.take::<Full>(bytes, all)
        } else {
            self.take::<Delta>(bytes, all)
        }
    }

    fn take<V: Variant>(&mut self, bytes: &[u8], all: &[&str]) -> Result<(), Status>
    where
        V::Request: tulle_xds_proto::prost::Message + Default,
    {
        let request =
            V::Request::decode(bytes).map_err(|error| Status::internal(error.to_string()))?;
        let request = match V::decode(request, LIMIT) {
            Ok(request) => request,
            Err(Refusal::Unserved(..)) => return Ok(()),
            Err(Refusal::Malformed(status)) => return Err(status),
            Err(Refusal::TooMany(error, _)) => {
                return Err(Status::resource_exhausted(error.to_string()));
            }
        };
        let new = || Subscription::new(request.kind, LIMIT);
        let subscription = self.subscriptions.entry(request.kind).or_insert_with(new);
        let ask = match request.change {
            Change::Delta(ask) => ask,
            Change::Full(names, reply) => match subscription.restate(names, reply) {
                Some(ask) => ask,
                None => return Ok(()),
            },
        };
        let all = || all.iter().map(|name| Name::from(*name)).collect();
        let applied = subscription.apply(ask, all);
        applied.map_err(|error| Status::resource_exhausted(error.to_string()))?;
        Ok(())
    }

    /// The next response that is due.
    pub fn respond(&mut self, shelf: Shelf) -> Option<Told> {
        if self.full {
            self.next::<Full>(shelf)
        } else {
            self.next::<Delta>(shelf)
        }
    }

    fn next<V: Variant>(&mut self, shelf: Shelf) -> Option<Told>
    where
        V::Response: tulle_xds_proto::prost::Message,
    {
        for phase in [Phase::Make, Phase::Break] {
            for (kind, subscription) in &mut self.subscriptions {
                let lookup = |name: &Name, _| {
                    let content = shelf(*kind, name)?;
                    Some(Arc::new(Encoded::new(*kind, Bytes::from_static(content))))
                };
                let batch = if V::FULL {
                    subscription.take_full(phase, BUDGET, lookup)
                } else {
                    subscription.take(phase, BUDGET, lookup)
                };
                let Some(batch) = batch else { continue };
                self.nonce += 1;
                let nonce = format!("{:x}", self.nonce);
                subscription.sent(nonce.clone(), "w".to_owned(), &batch);
                let resources = batch.resources.iter().map(|(name, _)| name.to_string());
                return Some(Told {
                    kind: *kind,
                    resources: resources.collect(),
                    removed: batch.removed.iter().map(ToString::to_string).collect(),
                    bytes: V::encode(*kind, nonce, "w".to_owned(), &batch).encode_to_vec(),
                });
            }
        }
        None
    }

    /// Whether a resource is wanted: by its name, or as one of all.
    #[must_use]
    pub fn wants(&self, kind: ResourceType, name: &str) -> bool {
        let wants = |it: &Subscription| it.is_wildcard() || it.wants(&name.into());
        self.subscriptions.get(&kind).is_some_and(wants)
    }

    /// Whether what is kept about the client is within bounds.
    ///
    /// # Panics
    /// If it is not.
    pub fn check(&self) {
        for subscription in self.subscriptions.values() {
            let status = subscription.status();
            assert!(!subscription.is_owing(), "all of it was told");
            assert!(status.subscribed <= LIMIT && status.unacknowledged <= 16);
            assert!(status.last_error.is_none_or(|error| error.len() <= 1024));
            assert_eq!(status.pending, 0);
        }
    }
}

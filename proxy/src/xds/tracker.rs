//! The delta protocol for one resource type: what is subscribed, what has been answered, what is to be said next.
//!
//! Knows names, versions, nonces and bytes; what the bytes mean is the decoder's business. A resource that does not
//! decode keeps its last good answer and goes into the NACK by name. One with a lifetime (TTL) that is not renewed is as
//! good as removed.

mod lifetime;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use tokio::time::Instant;
use tulle_xds_proto::ResourceType;
use tulle_xds_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource,
};
use tulle_xds_proto::google::protobuf::Any;
use tulle_xds_proto::google::rpc::Status;
use tulle_xds_proto::parts;

use super::decode::DecodeError;

/// The name that means every resource.
const WILDCARD: &str = "*";
/// gRPC status code of a NACK.
const INVALID_ARGUMENT: i32 = 3;
/// gRPC status code of a resource that does not exist.
const NOT_FOUND: i32 = 5;
/// Bad resources that a NACK names, the bytes of a name in it, and the bytes of all of it.
const MAX_REPORTED: usize = 16;
const MAX_NAME: usize = 256;
const MAX_REASON: usize = 8 * 1024;
/// Resources of one type that are kept, and the memory that they take: what comes on top is refused.
pub(super) const MAX_RESOURCES: usize = 32 * 1024;
const MAX_BYTES: usize = 16 * 1024 * 1024;
/// What the parts of one resource may count for before it is read, and those of endpoints, which are small and many: some
/// hundred megabytes at the worst, and so many only for a moment.
const MAX_PARTS: usize = 1 << 20;
const MAX_ENDPOINT_PARTS: usize = 1 << 22;
/// Acknowledgements that wait to be sent, and their bytes: with more, nothing is read until the server takes them.
const MAX_ACKS: usize = 1024;
const MAX_ACK_BYTES: usize = 1024 * 1024;

/// What a decoded resource takes.
pub(super) trait Weight {
    /// Bytes of memory, about.
    fn weight(&self) -> usize;
}

/// One resource type.
#[derive(Debug)]
pub(super) struct Tracker<R> {
    kind: ResourceType,
    wildcard: bool,
    entries: HashMap<Arc<str>, Entry<R>>,
    /// To be said with the next request.
    subscribe: BTreeSet<Arc<str>>,
    unsubscribe: BTreeSet<Arc<str>>,
    acks: VecDeque<Ack>,
    ack_bytes: usize,
    /// Bytes that all that is kept takes, about.
    bytes: usize,
    /// When something may expire; nothing does before.
    expires: Option<Instant>,
    /// Entries that hold what has expired.
    expired: usize,
    /// Nothing has been said on this stream yet.
    fresh: bool,
    /// The server has answered on some stream since the start.
    answered: bool,
}

#[derive(Debug)]
struct Entry<R> {
    answer: Answer<R>,
    version: String,
    raw: Vec<u8>,
    /// Bytes that it all takes, about.
    weight: usize,
    /// Looks at the connected stream, see [`Tracker::give_up`], that it has been unanswered for.
    unanswered: u32,
    /// When it expires, if it does.
    expires: Option<Instant>,
    /// What it was when it expired, in case that its server says that it lives after all.
    expired: Option<Arc<R>>,
}

impl<R> Entry<R> {
    /// Without content.
    fn empty(answer: Answer<R>) -> Self {
        Self {
            answer,
            version: String::new(),
            raw: Vec::new(),
            weight: 0,
            unanswered: 0,
            expires: None,
            expired: None,
        }
    }
}

/// What the server has said about a name.
#[derive(Debug)]
pub(super) enum Answer<R> {
    /// Nothing yet.
    Waiting,
    /// Something that was refused, and nothing good before it.
    Refused,
    /// It does not exist.
    Removed,
    /// This.
    Known(Arc<R>),
}

#[derive(Debug)]
struct Ack {
    nonce: String,
    error: Option<Status>,
}

/// What a response did.
#[derive(Debug, Default)]
pub(super) struct Applied {
    /// Names whose answer is another one now.
    pub(super) changed: Vec<Arc<str>>,
    /// Names that were sent, changed or not.
    pub(super) confirmed: Vec<Arc<str>>,
    /// Names whose resource was refused, and why.
    pub(super) rejected: Vec<(String, DecodeError)>,
    /// There was no room for one: what comes after it is not even looked at, unless it has a place already.
    full: bool,
}

impl<R: Weight> Tracker<R> {
    pub(super) fn new(kind: ResourceType, wildcard: bool) -> Self {
        Self {
            kind,
            wildcard,
            entries: HashMap::new(),
            subscribe: BTreeSet::new(),
            unsubscribe: BTreeSet::new(),
            acks: VecDeque::new(),
            ack_bytes: 0,
            bytes: 0,
            expires: None,
            expired: 0,
            fresh: true,
            answered: false,
        }
    }

    /// What is known of a name that is subscribed.
    pub(super) fn answer(&self, name: &str) -> Option<&Answer<R>> {
        self.entries.get(name).map(|entry| &entry.answer)
    }

    /// The resource of a name, if there is one.
    pub(super) fn known(&self, name: &str) -> Option<&Arc<R>> {
        match self.answer(name) {
            Some(Answer::Known(resource)) => Some(resource),
            _ => None,
        }
    }

    /// Names with their answers.
    pub(super) fn answers(&self) -> impl Iterator<Item = (&Arc<str>, &Answer<R>)> {
        self.entries
            .iter()
            .map(|(name, entry)| (name, &entry.answer))
    }

    /// How many names are subscribed or known.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether `*` is subscribed.
    pub(super) fn is_wildcard(&self) -> bool {
        self.wildcard
    }

    /// Whether the server has said anything about this type.
    pub(super) fn is_answered(&self) -> bool {
        self.answered
    }

    /// Subscribes to a name, if it is not.
    pub(super) fn want(&mut self, name: &Arc<str>) {
        if self.entries.contains_key(name) || self.entries.len() >= MAX_RESOURCES {
            return;
        }
        let entry = Entry::empty(Answer::Waiting);
        self.entries.insert(name.clone(), entry);
        self.unsubscribe.remove(name);
        self.subscribe.insert(name.clone());
    }

    /// Asks for a name again although it is subscribed: the server must then send it.
    pub(super) fn want_again(&mut self, name: &Arc<str>) {
        if self.entries.contains_key(name) {
            self.subscribe.insert(name.clone());
        }
    }

    /// Lets the next stream send a name whatever its version.
    pub(super) fn forget_version(&mut self, name: &str) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.version.clear();
        }
    }

    /// Subscribes to these names and no others; the names that are let go are returned.
    pub(super) fn want_only(&mut self, names: &HashSet<Arc<str>>) -> Vec<Arc<str>> {
        if self.wildcard {
            return Vec::new();
        }
        let dropped: Vec<_> = self
            .entries
            .keys()
            .filter(|name| !names.contains(*name))
            .cloned()
            .collect();
        for name in &dropped {
            let entry = self.entries.remove(name);
            self.let_go(entry);
            // What the server has not heard of needs no taking back; it does no harm either.
            self.subscribe.remove(name);
            self.unsubscribe.insert(name.clone());
        }
        for name in names {
            self.want(name);
        }
        dropped
    }

    /// A new stream: everything is said again.
    pub(super) fn reconnect(&mut self) {
        self.fresh = true;
        self.acks.clear();
        self.ack_bytes = 0;
        self.subscribe.clear();
        self.unsubscribe.clear();
        for entry in self.entries.values_mut() {
            entry.unanswered = 0;
        }
    }

    /// Counts a look at a stream that works. What has not been answered for `looks` of them does not exist: there are
    /// servers that say so by saying nothing. Returns these names.
    pub(super) fn give_up(&mut self, looks: u32) -> Vec<Arc<str>> {
        let mut absent = Vec::new();
        for (name, entry) in &mut self.entries {
            if !matches!(entry.answer, Answer::Waiting) {
                continue;
            }
            entry.unanswered += 1;
            if entry.unanswered >= looks {
                entry.answer = Answer::Removed;
                absent.push(name.clone());
            }
        }
        absent
    }

    /// Whether [`Tracker::next_request`] has something to say.
    pub(super) fn has_request(&self, acks: bool) -> bool {
        if self.fresh {
            return self.wildcard || !self.entries.is_empty();
        }
        let silent = self.subscribe.is_empty() && self.unsubscribe.is_empty();
        !silent || acks && !self.acks.is_empty()
    }

    /// Whether so much waits to be said that nothing more should be heard.
    pub(super) fn is_full(&self) -> bool {
        self.acks.len() >= MAX_ACKS || self.ack_bytes >= MAX_ACK_BYTES
    }

    /// Whether the type has been asked for on this stream.
    pub(super) fn is_asked(&self) -> bool {
        !self.fresh
    }

    /// Whether something that was asked for has never been answered.
    pub(super) fn is_waiting(&self) -> bool {
        let waits = |entry: &Entry<R>| matches!(entry.answer, Answer::Waiting);
        self.wildcard && !self.answered || self.entries.values().any(waits)
    }

    /// The next thing to tell the server, without the node; acknowledgements too, or only what is subscribed.
    pub(super) fn next_request(&mut self, acks: bool) -> Option<DeltaDiscoveryRequest> {
        if !self.has_request(acks) {
            return None;
        }
        let mut request = DeltaDiscoveryRequest {
            type_url: self.kind.type_url().to_owned(),
            ..Default::default()
        };
        if self.fresh {
            self.fresh = false;
            self.greet(&mut request);
        } else if let Some(ack) = acks.then(|| self.acks.pop_front()).flatten() {
            self.ack_bytes -= ack.bytes();
            request.response_nonce = ack.nonce;
            request.error_detail = ack.error;
        }
        let owned = |names: &mut BTreeSet<Arc<str>>| {
            std::mem::take(names)
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        request
            .resource_names_subscribe
            .extend(owned(&mut self.subscribe));
        request.resource_names_unsubscribe = owned(&mut self.unsubscribe);
        Some(request)
    }

    /// The first request of a stream: all names, with the versions that are here.
    fn greet(&mut self, request: &mut DeltaDiscoveryRequest) {
        self.subscribe.clear();
        self.unsubscribe.clear();
        if self.wildcard {
            request.resource_names_subscribe.push(WILDCARD.to_owned());
        } else {
            let mut names: Vec<_> = self.entries.keys().map(ToString::to_string).collect();
            names.sort();
            request.resource_names_subscribe = names;
        }
        for (name, entry) in &self.entries {
            if matches!(entry.answer, Answer::Known(_)) && !entry.version.is_empty() {
                request
                    .initial_resource_versions
                    .insert(name.to_string(), entry.version.clone());
            }
        }
    }

    /// Takes a response of this type and remembers to acknowledge it.
    pub(super) fn apply(
        &mut self,
        response: DeltaDiscoveryResponse,
        decode: impl Fn(&str, &Any) -> Result<R, DecodeError>,
    ) -> Applied {
        let mut applied = Applied::default();
        self.answered = true;
        let mut sent = HashMap::with_capacity(response.resources.len());
        for resource in response.resources {
            self.take(resource, &decode, &mut sent, &mut applied);
        }
        let missing = response.resource_errors.into_iter().filter_map(|error| {
            let status = error
                .error_detail
                .is_some_and(|status| status.code == NOT_FOUND);
            error
                .resource_name
                .filter(|_| status)
                .map(|resource| resource.name)
        });
        let removed_names = response
            .removed_resource_names
            .into_iter()
            .map(|removed| removed.name);
        for name in response
            .removed_resources
            .into_iter()
            .chain(missing)
            .chain(removed_names)
        {
            self.remove(&name, &mut applied);
        }
        let error = (!applied.rejected.is_empty()).then(|| nack(&applied.rejected));
        let nonce = response.nonce;
        let ack = Ack { nonce, error };
        self.ack_bytes += ack.bytes();
        self.acks.push_back(ack);
        applied
    }

    /// What is refused counts as such where nothing good came before.
    fn refused(&mut self, name: &str) {
        if let Some(entry) = self.entries.get_mut(name)
            && !matches!(entry.answer, Answer::Known(_))
        {
            let old = std::mem::replace(entry, Entry::empty(Answer::Refused));
            self.let_go(Some(old));
        }
    }

    /// `sent`: names of this response, with their contents' hashes.
    fn take(
        &mut self,
        resource: Resource,
        decode: &impl Fn(&str, &Any) -> Result<R, DecodeError>,
        sent: &mut HashMap<Arc<str>, u64>,
        applied: &mut Applied,
    ) {
        let ttl = resource.ttl;
        // Without a body it is a heartbeat.
        let Some(any) = resource.resource else {
            return self.heartbeat(&resource.name, &resource.version, ttl.as_ref(), applied);
        };
        if resource.name.is_empty() {
            let error = DecodeError::missing("name", "name the resource");
            return applied.refuse("(unnamed)", error);
        }
        if !self.wildcard && !self.entries.contains_key(resource.name.as_str()) {
            return;
        }
        let name: Arc<str> = resource.name.into();
        let hash = contents(&any);
        match sent.insert(name.clone(), hash) {
            None => {}
            Some(before) if before == hash => return,
            Some(_) => {
                let remedy = "send it once; the first of this response counts";
                let error = DecodeError::invalid("name", &name, remedy);
                return applied.refuse(&name, error);
            }
        }
        if let Some(entry) = self.entries.get_mut(&name)
            && matches!(entry.answer, Answer::Known(_))
            && entry.raw == any.value
            && any.type_url == self.kind.type_url()
        {
            entry.version = resource.version;
            self.renew(&name, ttl.as_ref());
            applied.confirmed.push(name);
            return;
        }
        if applied.full && !self.entries.contains_key(&name) {
            return applied.refuse(&name, no_room(&name));
        }
        let decoded = self
            .make_room(&name, any.value.len())
            .then(|| self.fits(&name, &any).and_then(|()| decode(&name, &any)));
        let decoded = match decoded {
            Some(Err(error)) => {
                self.refused(&name);
                return applied.refuse(&name, error);
            }
            Some(Ok(decoded)) => Some((any.value.len() + decoded.weight(), decoded)),
            None => None,
        };
        let Some((weight, decoded)) = decoded.filter(|(weight, _)| self.make_room(&name, *weight))
        else {
            applied.full = true;
            return applied.refuse(&name, no_room(&name));
        };
        let entry = Entry {
            version: resource.version,
            raw: any.value,
            weight,
            ..Entry::empty(Answer::Known(Arc::new(decoded)))
        };
        let old = self.entries.insert(name.clone(), entry);
        self.let_go(old);
        self.bytes += weight;
        self.renew(&name, ttl.as_ref());
        applied.changed.push(name.clone());
        applied.confirmed.push(name);
    }

    /// Makes sure that reading a resource makes no more of it than there is memory for.
    fn fits(&self, name: &str, any: &Any) -> Result<(), DecodeError> {
        let most = match self.kind {
            ResourceType::Endpoints => MAX_ENDPOINT_PARTS,
            _ => MAX_PARTS,
        };
        if parts::fits(&any.value, &[], most) {
            return Ok(());
        }
        let remedy = "it has more parts than may be read: make several of it";
        Err(DecodeError::invalid("name", name, remedy))
    }

    /// Counts what an entry held no more.
    fn let_go(&mut self, entry: Option<Entry<R>>) {
        if let Some(entry) = entry {
            self.bytes -= entry.weight;
            self.expired -= usize::from(entry.expired.is_some());
        }
    }

    fn has_room(&self, name: &str, weight: usize) -> bool {
        let old = self.entries.get(name);
        let others = self.bytes - old.map_or(0, |old| old.weight);
        let is_one_more = old.is_none() && self.entries.len() >= MAX_RESOURCES;
        !is_one_more && others + weight <= MAX_BYTES
    }

    fn remove(&mut self, name: &str, applied: &mut Applied) {
        let Some((name, entry)) = self.entries.get_key_value(name) else {
            return;
        };
        let name = name.clone();
        let changed = !matches!(entry.answer, Answer::Removed);
        let old = if self.wildcard {
            self.entries.remove(&name)
        } else {
            let entry = Entry::empty(Answer::Removed);
            self.entries.insert(name.clone(), entry)
        };
        self.let_go(old);
        if changed {
            applied.changed.push(name.clone());
        }
        applied.confirmed.push(name);
    }

    /// Everything answered that does not expire, as the response that would teach it to another client.
    pub(super) fn export(&self) -> DeltaDiscoveryResponse {
        let mut response = DeltaDiscoveryResponse {
            type_url: self.kind.type_url().to_owned(),
            ..Default::default()
        };
        for (name, entry) in &self.entries {
            match entry.answer {
                Answer::Waiting | Answer::Refused => {}
                Answer::Known(_) if entry.expires.is_some() => {}
                Answer::Removed => response.removed_resources.push(name.to_string()),
                Answer::Known(_) => response.resources.push(Resource {
                    name: name.to_string(),
                    version: entry.version.clone(),
                    resource: Some(Any {
                        type_url: self.kind.type_url().to_owned(),
                        value: entry.raw.clone(),
                    }),
                    ..Default::default()
                }),
            }
        }
        response
    }
}

fn no_room(name: &str) -> DecodeError {
    let remedy = format!(
        "of a type at most {MAX_RESOURCES} resources and {} MiB are kept: send less",
        MAX_BYTES >> 20
    );
    DecodeError::invalid("name", name, remedy)
}

impl Applied {
    fn refuse(&mut self, name: &str, error: DecodeError) {
        self.rejected.push((shortened(name, MAX_NAME), error));
    }
}

impl Ack {
    fn bytes(&self) -> usize {
        let reason = self.error.as_ref().map_or(0, |error| error.message.len());
        self.nonce.len() + reason
    }
}

/// A hash of what a resource holds.
fn contents(any: &Any) -> u64 {
    let mut hasher = DefaultHasher::new();
    any.type_url.hash(&mut hasher);
    any.value.hash(&mut hasher);
    hasher.finish()
}

/// The beginning of a text that comes from elsewhere.
pub(super) fn shortened(text: &str, bytes: usize) -> String {
    let end = text.floor_char_boundary(bytes);
    let more = if end < text.len() { "..." } else { "" };
    format!("{}{more}", &text[..end])
}

fn nack(rejected: &[(String, DecodeError)]) -> Status {
    let mut message = String::new();
    for (name, error) in rejected.iter().take(MAX_REPORTED) {
        if !message.is_empty() {
            message.push_str("; ");
        }
        message.push_str(&format!("{name}: {error}"));
    }
    message = shortened(&message, MAX_REASON);
    if rejected.len() > MAX_REPORTED {
        message.push_str(&format!("; and {} more", rejected.len() - MAX_REPORTED));
    }
    Status {
        code: INVALID_ARGUMENT,
        message,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests;

//! What a client of the control plane asks.
//!
//! The first byte of the input chooses a variant of the protocol; then come requests, each behind its length. Each is
//! taken, or ends the stream. Between them everything that is due goes out: then nothing is owed, the client
//! heard only of what it named, except where it asked for all, and heard of everything there is that it wants and does
//! not say it has. What is kept of it stays within bounds.

#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::{fuzz_mutator, fuzzer_mutate};
use tulle_control::fuzz::Conversation;
use tulle_fuzz::input::Cursor;
use tulle_fuzz::proto;
use tulle_xds_proto::ResourceType;
use tulle_xds_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use tulle_xds_proto::prost::Message as _;

/// Names of what there is of each type.
const NAMES: [&str; 3] = ["a", "b", "outbound|10.0.0.1|80"];
/// Most responses to one request.
const MAX_RESPONSES: usize = 1_000;

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    requests(&mut data[..max_size], size, seed)
});

tulle_fuzz::target!(|data: &[u8]| {
    let mut input = Cursor(data);
    let full = input.byte() % 2 == 1;
    let mut conversation = Conversation::new(full);
    let mut named: BTreeSet<(ResourceType, String)> = BTreeSet::new();
    let mut claimed = BTreeSet::new();
    let mut told = BTreeSet::new();
    while !input.is_empty() {
        let request = input.long();
        if conversation.request(request, &NAMES).is_err() {
            return;
        }
        let Some((kind, names, has)) = said(request, full) else {
            // About a type that is not served: nobody is told anything.
            assert!(conversation.respond(shelf).is_none());
            continue;
        };
        named.extend(
            names
                .into_iter()
                .chain(has.clone())
                .map(|name| (kind, name)),
        );
        claimed.extend(has.into_iter().map(|name| (kind, name)));
        for responses in 0.. {
            let Some(response) = conversation.respond(shelf) else {
                break;
            };
            assert!(responses < MAX_RESPONSES, "no end");
            let kind = response.kind;
            for name in response.resources.iter().chain(&response.removed) {
                let one_of_all = kind.supports_wildcard() && NAMES.contains(&name.as_str());
                assert!(
                    one_of_all || named.contains(&(kind, name.clone())),
                    "{name}"
                );
            }
            told.extend(response.resources.into_iter().map(|name| (kind, name)));
        }
        conversation.check();
        for kind in ResourceType::ALL {
            for name in NAMES {
                let it = (kind, name.to_owned());
                let heard = told.contains(&it) || claimed.contains(&it);
                assert!(heard || !conversation.wants(kind, name), "{kind:?} {name}");
            }
        }
    }
});

fn shelf(_: ResourceType, name: &str) -> Option<&'static [u8]> {
    NAMES.contains(&name).then_some(&[b'x'; 100])
}

/// The type of a request, the names that it asks for, and those that it says it has.
fn said(request: &[u8], full: bool) -> Option<(ResourceType, Vec<String>, Vec<String>)> {
    if full {
        let request = DiscoveryRequest::decode(request).ok()?;
        let kind = ResourceType::from_type_url(&request.type_url)?;
        return Some((kind, request.resource_names, Vec::new()));
    }
    let request = DeltaDiscoveryRequest::decode(request).ok()?;
    let kind = ResourceType::from_type_url(&request.type_url)?;
    let has = request.initial_resource_versions.into_keys().collect();
    Some((kind, request.resource_names_subscribe, has))
}

/// Changes one of the requests, or which of them come.
fn requests(data: &mut [u8], size: usize, seed: u32) -> usize {
    let mut rng = fastrand::Rng::with_seed(u64::from(seed));
    let mut input = Cursor(&data[..size]);
    let variant = input.byte();
    let mut requests = Vec::new();
    while !input.is_empty() {
        requests.push(input.long().to_vec());
    }
    if requests.is_empty() || rng.u8(..32) == 0 {
        return fuzzer_mutate(data, size, data.len());
    }
    let at = rng.usize(..requests.len());
    match rng.u8(..8) {
        0 => drop(requests.remove(at)),
        1 => requests.push(requests[at].clone()),
        2 => requests.swap(at, 0),
        _ => {
            let request = &mut requests[at];
            let length = request.len();
            request.resize(length + 256, 0);
            let length = proto::mutate(request, length, seed, fuzzer_mutate);
            request.truncate(length);
        }
    }
    let mut out = vec![variant ^ u8::from(rng.u8(..16) == 0)];
    for request in &requests {
        let length = u16::try_from(request.len()).unwrap_or(u16::MAX);
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&request[..usize::from(length)]);
    }
    if out.len() > data.len() {
        return size;
    }
    data[..out.len()].copy_from_slice(&out);
    out.len()
}

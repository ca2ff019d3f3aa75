//! What the config client makes of a whole conversation, and of what it saved of one.
//!
//! The input is a saved config: delta responses, each behind its length. They come to a client that has asked for some
//! destinations, and to one that has asked for everything. After each of them, what the data path sees holds
//! together, what is asked for is bounded by what was named, and each response is acknowledged once. What is saved at
//! the end is read back, and makes of a new client one that sees the same.

#![no_main]

use std::collections::BTreeSet;
use std::net::SocketAddr;

use libfuzzer_sys::{fuzz_mutator, fuzzer_mutate};
use tulle_fuzz::{proto, snapshot};
use tulle_proxy::config::store::Ask;
use tulle_proxy::config::{Lookup, Snapshot};
use tulle_proxy::fuzz::xds::{Client, saved, to_save};
use tulle_xds_proto::envoy::service::discovery::v3::DeltaDiscoveryResponse;

const NODE: &str = "sidecar~10.1.0.9~web-1.shop~shop.svc.cluster.local";

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    // Lengths in front of messages are the fields of a message without keys.
    session(&mut data[..max_size], size, seed)
});

tulle_fuzz::target!(|data: &[u8]| {
    let Ok(responses) = saved(NODE, data) else {
        return;
    };
    let responses = &responses[..responses.len().min(24)];
    for wildcard in [false, true] {
        let mut client = Client::new(wildcard);
        for address in asked(responses) {
            client.ask(Ask::Outbound(address));
            client.ask(Ask::Workload(address.ip()));
        }
        while client.next_request().is_some() {}
        for (at, response) in responses.iter().enumerate() {
            take(&mut client, response.clone());
            if at % 7 == 6 {
                client.sweep();
            }
        }
        client.reconnect();
        while client.next_request().is_some() {}
        restored(&client, wildcard);
    }
});

/// The destinations that the responses are about.
fn asked(responses: &[DeltaDiscoveryResponse]) -> BTreeSet<SocketAddr> {
    let resources = responses.iter().flat_map(|response| &response.resources);
    let names =
        resources.filter_map(|resource| tulle_proxy::fuzz::xds::listener_address(&resource.name));
    let known = ["10.0.0.1:80", "[fd00::1]:80"].map(|it| it.parse().expect("an address"));
    names.take(8).chain(known).collect()
}

fn take(client: &mut Client, response: DeltaDiscoveryResponse) {
    let (nonce, kind) = (response.nonce.clone(), response.type_url.clone());
    let Some(rejected) = client.apply(response) else {
        return;
    };
    snapshot::exercise(client.snapshot());
    let mut acknowledged = 0;
    while let Some(request) = client.next_request() {
        if request.response_nonce == nonce && request.type_url == kind {
            acknowledged += 1;
            assert!(nonce.is_empty() || request.error_detail.is_some() != rejected.is_empty());
        }
        if let Some(error) = request.error_detail {
            assert!(
                error.message.len() <= 9 * 1024,
                "{} bytes of reasons",
                error.message.len()
            );
        }
    }
    assert!(
        acknowledged == 1 || nonce.is_empty(),
        "acknowledged {acknowledged} times"
    );
}

/// A client that begins with what this one saves sees what this one would see if it began anew.
fn restored(client: &Client, wildcard: bool) {
    let bytes = to_save(NODE, client.export()).expect("it fits");
    let read = saved(NODE, &bytes).expect("it was written here");
    let mut again = Client::new(wildcard);
    again.import(read);
    snapshot::exercise(again.snapshot());
    let twice = to_save(NODE, again.export()).expect("it fits");
    let mut third = Client::new(wildcard);
    third.import(saved(NODE, &twice).expect("it was written here"));
    assert_eq!(seen(again.snapshot()), seen(third.snapshot()));
}

/// Names of what the data path can use.
fn seen(snapshot: &Snapshot) -> BTreeSet<String> {
    let outbound = snapshot
        .outbound
        .iter()
        .map(|(address, lookup)| match lookup {
            Lookup::Known(listener) => format!("listener {}", listener.name),
            Lookup::Unknown => format!("nothing at {address}"),
        });
    let routes = snapshot.routes.keys().map(|name| format!("routes {name}"));
    let clusters = snapshot
        .clusters
        .iter()
        .map(|(name, cluster)| format!("cluster {name} of {}", cluster.endpoints.len()));
    outbound.chain(routes).chain(clusters).collect()
}

/// Changes one of the responses.
fn session(data: &mut [u8], size: usize, seed: u32) -> usize {
    let Ok(mut responses) = saved(NODE, &data[..size]) else {
        return fuzzer_mutate(data, size, data.len());
    };
    if responses.is_empty() {
        return fuzzer_mutate(data, size, data.len());
    }
    use tulle_xds_proto::prost::Message as _;
    let mut rng = fastrand::Rng::with_seed(u64::from(seed));
    let at = rng.usize(..responses.len());
    match rng.u8(..8) {
        0 => drop(responses.remove(at)),
        1 => {
            let twice = responses[at].clone();
            responses.push(twice);
        }
        2 => {
            let last = responses.len() - 1;
            responses.swap(at, last);
        }
        _ => {
            let mut bytes = responses[at].encode_to_vec();
            let length = bytes.len();
            bytes.resize(length + 256, 0);
            let length = proto::mutate(&mut bytes, length, seed, fuzzer_mutate);
            if let Ok(changed) = DeltaDiscoveryResponse::decode(&bytes[..length]) {
                responses[at] = changed;
            }
        }
    }
    match to_save(NODE, responses) {
        Ok(bytes) if bytes.len() <= data.len() => {
            data[..bytes.len()].copy_from_slice(&bytes);
            bytes.len()
        }
        _ => size,
    }
}

//! Resources of every type.
//!
//! The input is one resource of a delta response: its name, and an `Any` that says its type. Whatever it is, it is refused
//! with a short reason, or what comes of it can be used: routes take requests, listeners lead somewhere. The mutator
//! keeps the input a message.

#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzzer_mutate};
use tulle_fuzz::{proto, routes, snapshot};
use tulle_proxy::fuzz::xds::{Decoded, decode};
use tulle_xds_proto::ResourceType;
use tulle_xds_proto::envoy::service::discovery::v3::Resource;
use tulle_xds_proto::prost::Message as _;

/// Longest reason: it goes into a NACK and into the log.
const MAX_ERROR: usize = 8 * 1024;

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    proto::mutate(&mut data[..max_size], size, seed, fuzzer_mutate)
});

tulle_fuzz::target!(|data: &[u8]| {
    let Ok(resource) = Resource::decode(data) else {
        return;
    };
    let Some(any) = resource.resource else {
        return;
    };
    let Some(kind) = ResourceType::from_type_url(&any.type_url) else {
        return;
    };
    match decode(kind, &resource.name, &any) {
        Ok(Decoded::Outbound(listener)) => snapshot::each(&listener.protocol, snapshot::source),
        Ok(Decoded::Inbound(listener)) => snapshot::inbound(&listener),
        Ok(Decoded::Routes(table)) => routes::exercise(&table),
        Ok(Decoded::Workload(_) | Decoded::Other) => {}
        Err(error) => {
            let length = error.to_string().len();
            assert!(length <= MAX_ERROR, "{length} bytes");
        }
    }
});

//! What the agent lets through to the control plane.
//!
//! The first byte of the input chooses a variant of the protocol; the rest is the first request of a stream. It is let through
//! only if the control plane will take it for this pod's, or for nobody's. A refusal repeats a stranger's words cut.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::{fuzz_mutator, fuzzer_mutate};
use tulle_agent::fuzz::Gate;
use tulle_fuzz::proto;
use tulle_xds_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use tulle_xds_proto::prost::Message as _;

const NODE: &str = "10.1.0.9~web-1.shop~shop.svc.cluster.local";
/// Longest refusal: a character of the id is ten bytes at most, escaped, and 256 are repeated.
const MAX_REFUSAL: usize = 256 * 10 + 200;

static GATE: LazyLock<Gate> = LazyLock::new(|| Gate::new(NODE));

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let Some((variant, request)) = data[..max_size].split_first_mut() else {
        return size;
    };
    if size == 0 || seed.is_multiple_of(32) {
        *variant ^= 1;
        return size.max(1);
    }
    1 + proto::mutate(request, size - 1, seed, fuzzer_mutate)
});

tulle_fuzz::target!(|data: &[u8]| {
    let Some((variant, request)) = data.split_first() else {
        return;
    };
    let full = variant % 2 == 1;
    let id = named(full, request);
    match GATE.admit(full, request) {
        Ok(()) => {
            let id = id.expect("it can be read");
            let pod = tulle_control::fuzz::node_id(&id, "cluster.local");
            let own = ("web-1".to_owned(), "shop".to_owned());
            assert!(pod.is_none_or(|pod| pod == own), "{id}");
        }
        Err(status) => {
            assert!(
                status.message().len() <= MAX_REFUSAL,
                "{}",
                status.message()
            );
            assert!(
                id.is_none_or(
                    |id| !id.ends_with(&format!("~{NODE}")) || id.matches('~').count() > 3
                )
            );
        }
    }
});

/// The node's id, as the control plane reads it.
fn named(full: bool, request: &[u8]) -> Option<String> {
    let node = if full {
        DiscoveryRequest::decode(request).ok()?.node
    } else {
        DeltaDiscoveryRequest::decode(request).ok()?.node
    };
    Some(node?.id)
}

//! The HTTP hop, with real clients and apps in one process.

mod affinity;
mod blanks;
mod crowded;
mod downgrade;
mod drains;
mod early;
mod ends;
mod grpc_web;
mod harness;
mod herd;
mod inbound;
mod interim;
mod limits;
mod lost;
mod messages;
mod outbound;
mod overload;
mod refused;
mod replay;
mod resets;
mod retry;
mod shared;
mod slow;
mod stalled;
mod streams;
mod told;
mod trust;
mod tunnels;
mod upgrade;
mod uploads;
mod versions;
mod windows;

use super::server;

/// The size of what an async function makes of its arguments.
fn size_of_future<A, B, F: Future>(_: impl Fn(A, B) -> F) -> usize {
    size_of::<F>()
}

#[test]
fn a_request_takes_little_memory() {
    let size = size_of_future(server::handle);
    assert!(size <= 4096, "a request's future takes {size} bytes");
}

//! HTTP/2 that is meant to do harm, against real sidecars from every side: a stranger and a mesh peer towards a listener
//! inbound, an app towards its own outbound one, and apps and peers that answer so.
//!
//! What breaks the rules is written frame by frame in Python (`floods/frames.py`). Each test has a client that behaves
//! itself on another connection meanwhile, and loses nothing; what the sidecar under attack may cost is its own CPU time
//! and memory, never the time on the wall.

mod clients;
mod configured;
mod gone;
mod heads;
mod servers;
mod shared;
pub(crate) mod short;
mod siege;
mod streams;

pub(crate) fn cases() -> Vec<tulle_tests::Case> {
    let files = [
        clients::cases(),
        configured::cases(),
        heads::cases(),
        streams::cases(),
        short::cases(),
        servers::cases(),
        shared::cases(),
        gone::cases(),
    ];
    files.into_iter().flatten().collect()
}

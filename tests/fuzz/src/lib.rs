//! What several fuzz targets share.
//!
//! A target states what must hold for every input, not just that nothing panics; each of its `//!` heads says what that
//! is. Targets stay deterministic: random numbers are seeded from the input, and nothing waits for a clock.

pub mod der;
pub mod http1;
pub mod input;
pub mod pods;
pub mod proto;
pub mod routes;
pub mod snapshot;
pub mod still;
pub mod wire;

/// Defines a fuzz target: what is done with an input.
#[macro_export]
macro_rules! target {
    (|$data:ident: &[u8]| $body:block) => {
        libfuzzer_sys::fuzz_target!(|$data: &[u8]| {
            $crate::still::note();
            $body
        });
    };
}

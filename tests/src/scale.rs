//! How long the long tests are: seconds, unless somebody wants them whole.

use tulle_runtime::env::Env;

/// The first number, or the second where `TULLE_TEST_SCALE` is `full`, as tests/soak sets it.
#[must_use]
pub fn scaled(short: usize, full: usize) -> usize {
    match Env::process().text("TULLE_TEST_SCALE") {
        Some("full") => full,
        _ => short,
    }
}

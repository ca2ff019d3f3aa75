//! How long the long tests are: seconds, unless somebody wants them whole, who is told then how far they are.

use tulle_runtime::env::Env;

/// Variable that says how long the long tests are.
const SCALE: &str = "TULLE_TEST_SCALE";

/// The first number, or the second where `TULLE_TEST_SCALE` is `full`, as tests/soak sets it.
#[must_use]
pub fn scaled(short: usize, full: usize) -> usize {
    if is_full() { full } else { short }
}

/// Says how far a test has come that is played at full length: about twenty times until its end.
pub fn progress(test: &str, done: usize, of: usize) {
    if is_full() && done.is_multiple_of((of / 20).max(1)) {
        eprintln!("{test}: {done} of {of}");
    }
}

/// Whether tests are played at full length, as tests/soak does.
#[must_use]
pub(crate) fn is_full() -> bool {
    Env::process().text(SCALE) == Some("full")
}

//! The same inputs every time.
//!
//! A fuzzer keeps the inputs that reach new code, and goes on from those. What code a parser reaches differs a little from
//! one run to the next, because hash maps are seeded and keys are random, and soon so do the inputs. With the feature
//! `still` the programs are built without coverage, and the fuzzer is told here that the seeds reached something new, and
//! after them every so many inputs whatever they did: where it goes depends on its own seed alone.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

/// So many inputs are kept whatever comes: more than there are seeds of a target.
const FIRST: usize = 128;
/// Of the others one in so many.
const ONE_IN: usize = 16;

#[repr(align(64))]
struct Counters([AtomicU8; 4096]);

/// Counters that libFuzzer looks at after each input, and clears.
#[cfg_attr(feature = "still", unsafe(link_section = "__libfuzzer_extra_counters"))]
static COUNTERS: Counters = Counters([const { AtomicU8::new(0) }; 4096]);

/// An input is looked at.
pub fn note() {
    static INPUTS: AtomicUsize = AtomicUsize::new(0);
    if !cfg!(feature = "still") {
        return;
    }
    let input = INPUTS.fetch_add(1, Ordering::Relaxed);
    let counter = match input.checked_sub(FIRST) {
        None => input,
        Some(after) if after.is_multiple_of(ONE_IN) => FIRST + after / ONE_IN,
        Some(_) => return,
    };
    if let Some(counter) = COUNTERS.0.get(counter) {
        counter.store(1, Ordering::Relaxed);
    }
}

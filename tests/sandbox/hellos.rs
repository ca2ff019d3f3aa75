//! TLS between sidecars, against peers that bend it: streams that are cut, versions of yesterday, and ClientHellos of every
//! size and shape. Row 29.

mod cut;
mod shapes;

pub(crate) fn cases() -> Vec<tulle_tests::Case> {
    [cut::cases(), shapes::cases()]
        .into_iter()
        .flatten()
        .collect()
}

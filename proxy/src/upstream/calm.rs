//! Which limit an HTTP/2 connection ended at, whichever side opened it.

use std::error::Error as _;

use h2::Reason;

use crate::io::{Calm, Ended};
use crate::telemetry::Limit;

/// The limit that a peer has reached, if its connection ended for that.
pub(crate) fn limit(calm: &Calm, error: &hyper::Error) -> Option<Limit> {
    match calm.ended() {
        Some(ended) => Some(limit_of(ended)),
        None => (broken(error)? == Reason::ENHANCE_YOUR_CALM).then_some(Limit::H2Flood),
    }
}

pub(crate) fn limit_of(ended: Ended) -> Limit {
    match ended {
        Ended::ControlFrames => Limit::H2ControlFrames,
        Ended::Asked => Limit::H2GivenUp,
        Ended::Interim => Limit::Interim,
        Ended::Stalled => Limit::Unread,
        Ended::Said("too_many_resets") => Limit::H2PendingResets,
        Ended::Said("too_many_internal_resets") => Limit::H2LocalResets,
        Ended::Said("too_many_continuations") => Limit::H2Continuations,
        Ended::Said("header_list_way_too_large") => Limit::H2HeaderList,
        Ended::Said("too_many_data_frames") => Limit::H2DataFrames,
        Ended::Said(_) => Limit::H2Flood,
    }
}

/// What a connection ended for, if its peer's frames were found wrong here, and it did not just leave.
pub(crate) fn broken(error: &hyper::Error) -> Option<Reason> {
    let cause = error.source()?.downcast_ref::<h2::Error>()?;
    let ours = cause.reason().filter(|_| cause.is_library());
    ours.filter(|reason| *reason != Reason::NO_ERROR)
}

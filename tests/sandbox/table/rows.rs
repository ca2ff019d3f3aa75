//! The rows, by subject.

mod connection;
mod content_length;
mod framing;
mod grpc_web;
mod host;
mod limits;
mod pipelining;
mod request_line;
mod responses;
mod switching;
mod trailers;
mod transfer_encoding;

use super::row::Row;

/// All of them.
pub(crate) fn all() -> Vec<Row> {
    let rows: Vec<Row> = [
        framing::rows(),
        content_length::rows(),
        transfer_encoding::rows(),
        request_line::rows(),
        host::rows(),
        connection::rows(),
        switching::rows(),
        trailers::rows(),
        pipelining::rows(),
        responses::rows(),
        grpc_web::rows(),
        limits::rows(),
    ]
    .into_iter()
    .flatten()
    .collect();
    debug_assert!(are_named_apart(&rows), "two rows have one name");
    rows
}

fn are_named_apart(rows: &[Row]) -> bool {
    let mut names: Vec<_> = rows.iter().map(|row| row.name).collect();
    names.sort_unstable();
    names.windows(2).all(|two| two[0] != two[1])
}

//! What becomes of the headers of a message, without the message, for fuzz targets.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;
use http::request::Parts;
use tulle_identity::SpiffeId;

use super::headers::{self, Believed, Provenance};
use crate::conn::HttpVersion;

/// Makes of a request one that can be sent on; whether its client asks to switch protocols.
///
/// # Errors
/// Why it cannot.
pub fn sent_on(
    request: &mut Parts,
    version: HttpVersion,
    destination: SocketAddr,
) -> Result<bool, String> {
    headers::prepare_request(request, version, destination)
        .map_err(|failure| format!("{failure:?}"))
}

/// Makes of an answer one that can be sent on; whether its body is coded in a way that nobody asked for.
pub fn answered(headers: &mut HeaderMap, upgraded: bool) -> bool {
    headers::prepare_response(headers, upgraded)
}

/// Says who sent a request. `sidecar`: a client's word on who sent it to him is believed; `ingress`: on how it was reached.
pub fn vouched(
    headers: &mut HeaderMap,
    own: &SpiffeId,
    client: IpAddr,
    peer: Option<&SpiffeId>,
    sidecar: bool,
    ingress: bool,
) {
    let believed = Believed::of(sidecar, ingress);
    Provenance::new(own, client, peer, believed).apply(headers);
}

//! Messages as they are: bytes in, the same bytes out. Only the node of a first request is read.

use bytes::{Buf as _, BufMut as _, Bytes};
use prost::Message as _;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tulle_xds_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use tulle_xds_proto::prost;

use super::Method;

/// Takes each message as a whole and does not look inside.
#[derive(Clone, Copy, Debug)]
pub(super) struct Whole;

impl Codec for Whole {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Whole {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(message);
        Ok(())
    }
}

impl Decoder for Whole {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// The id of the node that a request names; empty if it names none.
pub(super) fn node_id(method: Method, request: &Bytes) -> Result<String, prost::DecodeError> {
    let node = match method {
        Method::Full => DiscoveryRequest::decode(request.clone())?.node,
        Method::Delta => DeltaDiscoveryRequest::decode(request.clone())?.node,
    };
    Ok(node.map(|node| node.id).unwrap_or_default())
}

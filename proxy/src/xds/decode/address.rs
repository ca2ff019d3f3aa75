//! Socket addresses.

use std::net::{IpAddr, SocketAddr};

use tulle_xds_proto::envoy::config::core::v3::socket_address::{PortSpecifier, Protocol};
use tulle_xds_proto::envoy::config::core::v3::{Address, address};

use super::error::DecodeError;

/// An IP address and port; names are not resolved here.
pub(super) fn decode(field: &str, value: Option<&Address>) -> Result<SocketAddr, DecodeError> {
    const REMEDY: &str = "use a socket_address with an IP address and a port_value";
    let address = value.and_then(|value| value.address.as_ref());
    let Some(address) = address else {
        return Err(DecodeError::missing(field, REMEDY));
    };
    let address::Address::SocketAddress(socket) = address else {
        return Err(DecodeError::unsupported(field, REMEDY));
    };
    if socket.protocol != Protocol::Tcp as i32 {
        return Err(DecodeError::unsupported(field, "only TCP is proxied"));
    }
    let ip: IpAddr = match socket.address.parse() {
        Ok(ip) => ip,
        Err(_) => {
            let remedy = "names are not resolved here: give an IP address";
            return Err(DecodeError::invalid(field, &socket.address, remedy));
        }
    };
    let Some(PortSpecifier::PortValue(port)) = socket.port_specifier else {
        return Err(DecodeError::missing(field, REMEDY));
    };
    match u16::try_from(port) {
        Ok(port) => Ok(SocketAddr::new(ip, port)),
        Err(_) => Err(DecodeError::invalid(field, port, "a port is at most 65535")),
    }
}

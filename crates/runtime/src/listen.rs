//! Listening on both families of addresses with one socket, where the kernel has both.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::TcpListener;

/// Listens at an address. `[::]` is every address of both families, or of IPv4 alone where the kernel has no IPv6.
///
/// # Errors
/// As [`TcpListener::bind`].
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error)
            if address.ip() == Ipv6Addr::UNSPECIFIED
                && error.kind() != io::ErrorKind::AddrInUse =>
        {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn one_socket_takes_connections_of_ipv4_too() {
        let listener = bind((Ipv6Addr::UNSPECIFIED, 0).into())
            .await
            .expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        TcpStream::connect((Ipv4Addr::LOCALHOST, port))
            .await
            .expect("it listens");
        let again = bind((Ipv6Addr::UNSPECIFIED, port).into()).await;
        assert_eq!(again.expect_err("taken").kind(), io::ErrorKind::AddrInUse);
    }
}

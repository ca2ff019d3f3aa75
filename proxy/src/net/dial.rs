//! Connections that the proxy opens.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use nix::sys::socket::sockopt::IpBindAddressNoPort;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream};
use tulle_runtime::names::{INBOUND_SOURCE_V4, INBOUND_SOURCE_V6};

use crate::settings::Settings;

/// Idle time after which the kernel asks whether the peer is still there, and how often then.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(15), Duration::from_secs(5), 3);

/// What a connection reaches for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reach {
    /// A destination outside the pod.
    Out,
    /// The app of this pod, from the source address that capture exempts.
    App,
}

/// Connects. The caller limits the time.
///
/// # Errors
///
/// What the kernel said.
pub async fn dial(settings: &Settings, address: SocketAddr, reach: Reach) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_nodelay(true)?;
    let options = SockRef::from(&socket);
    if let Some(mark) = settings.socket_mark {
        options.set_mark(mark)?;
    }
    match reach {
        Reach::Out => {
            let (idle, interval, probes) = KEEPALIVE;
            let keepalive = TcpKeepalive::new()
                .with_time(idle)
                .with_interval(interval)
                .with_retries(probes);
            options.set_tcp_keepalive(&keepalive)?;
        }
        Reach::App => {
            let source = match address {
                SocketAddr::V4(_) => IpAddr::V4(INBOUND_SOURCE_V4),
                SocketAddr::V6(_) => IpAddr::V6(INBOUND_SOURCE_V6),
            };
            // Many connections to one app share the source address: let the kernel pick the port at connect.
            nix::sys::socket::setsockopt(&socket, IpBindAddressNoPort, &true)?;
            socket.bind(SocketAddr::new(source, 0))?;
        }
    }
    socket.connect(address).await
}

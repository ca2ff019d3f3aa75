//! Sockets: listeners, original destinations, and connections of our own.
//!
//! Everything that the kernel must be told about a connection is told here. What this room hands on is a plain
//! [`TcpStream`] with its facts; it reads and writes no byte.

mod accept;
mod count;
mod dial;
mod refusal;
mod unheard;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::net::TcpStream;

pub use accept::{Acceptor, Captured, Metrics};
pub use count::{Count, Open};
pub use dial::{Reach, dial};
pub use refusal::Refusal;
pub(crate) use unheard::unheard;

/// Connections that wait in the kernel until a worker accepts them.
const BACKLOG: i32 = 4096;

/// Why a port cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error(
    "could not listen on {address}: {source}; end the process that holds the port, or run one sidecar a pod"
)]
pub struct ListenError {
    /// What was asked for.
    pub address: SocketAddr,
    /// What the kernel said.
    pub source: io::Error,
}

/// Listens on a port of every address, IPv4 and, where the kernel has it, IPv6.
///
/// # Errors
///
/// When the port is taken.
pub fn listen(port: u16) -> Result<Vec<std::net::TcpListener>, ListenError> {
    let v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let mut listeners = vec![bind(v4).map_err(|source| ListenError {
        address: v4,
        source,
    })?];
    // Port 0 is for tests: both listeners get the same one.
    let port = listeners[0]
        .local_addr()
        .map_or(port, |address| address.port());
    let v6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    match bind(v6) {
        Ok(listener) => listeners.push(listener),
        Err(error) if lacks_ipv6(&error) => {
            tracing::info!("this kernel has no IPv6; listening on IPv4 only")
        }
        Err(source) => {
            return Err(ListenError {
                address: v6,
                source,
            });
        }
    }
    Ok(listeners)
}

fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn lacks_ipv6(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(nix::libc::EAFNOSUPPORT | nix::libc::EADDRNOTAVAIL)
    )
}

/// Where a redirected connection meant to go.
fn original_destination(tcp: &TcpStream) -> io::Result<SocketAddr> {
    let socket = SockRef::from(tcp);
    let address = match tcp.local_addr()? {
        SocketAddr::V4(_) => socket.original_dst_v4()?,
        SocketAddr::V6(_) => socket.original_dst_v6()?,
    };
    address
        .as_socket()
        .ok_or_else(|| io::Error::other("the original destination is not an IP address"))
}

/// Closes a connection with a reset: the peer learns that something went wrong, not that everything was said.
pub fn reset(tcp: &TcpStream) {
    // Fails only on a socket that is gone already.
    let _ = SockRef::from(tcp).set_linger(Some(std::time::Duration::ZERO));
}

/// Why the proxy's sockets cannot be told from the app's.
#[derive(Debug, thiserror::Error)]
#[error(
    "could not mark a socket ({0}); give the sidecar the capability NET_ADMIN, or a user id of its own and no \
     TULLE_MARK_SOCKETS"
)]
pub struct MarkError(io::Error);

/// Makes sure that sockets can be marked, before every connection fails for it.
///
/// # Errors
///
/// When they cannot.
pub fn check_mark(mark: u32) -> Result<(), MarkError> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).map_err(MarkError)?;
    socket.set_mark(mark).map_err(MarkError)
}

/// Raises the number of files that this process may open to what the system allows, and returns it.
pub fn raise_file_limit() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return 1024;
    };
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(error) => {
            tracing::warn!(%error, limit = soft, "could not raise the limit of open files");
            soft
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::fd::AsFd;

    use nix::libc::{BPF_K, BPF_RET};
    use socket2::{SockFilter, SockRef};
    use tokio::net::{TcpListener, TcpStream};

    /// Both ends of a connection.
    pub(crate) async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        (client.unwrap(), accepted.unwrap().0)
    }

    /// Has the kernel drop whatever comes for a socket, as if its machine were gone.
    pub(crate) fn vanish(socket: &impl AsFd) {
        let nothing = SockFilter::new((BPF_RET | BPF_K) as u16, 0, 0, 0);
        SockRef::from(socket).attach_filter(&[nothing]).unwrap();
    }
}

//! Sockets in a pod's network namespace, used from here: whoever makes a socket there has it there for good.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, anyhow};
use nix::sched::{CloneFlags, setns};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tulle_tests::Arena;

/// The network of a pod.
#[derive(Debug)]
pub(crate) struct Place(File);

impl Place {
    /// Where the pods of an app are.
    pub(crate) fn of(arena: &Arena<'_>, app: &str) -> anyhow::Result<Self> {
        let pod = arena.pod(app)?;
        let container = pod.containers.iter().find(|container| !container.init);
        let pid = container
            .and_then(|container| container.pid)
            .with_context(|| format!("{app} has no running container"))?;
        Ok(Self(File::open(format!("/proc/{pid}/ns/net"))?))
    }

    /// Makes something there.
    fn within<T: Send>(&self, make: impl FnOnce() -> io::Result<T> + Send) -> anyhow::Result<T> {
        let entered = std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET)?;
                make()
            });
            inside.join()
        });
        Ok(entered.map_err(|_| anyhow!("the thread in the namespace panicked"))??)
    }

    /// Listens on a port of every address; the place must not use it otherwise.
    pub(crate) fn listen(&self, port: u16) -> anyhow::Result<TcpListener> {
        let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let listener = self.within(|| {
            let listener = std::net::TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        })?;
        Ok(TcpListener::from_std(listener)?)
    }

    /// Connects to an address.
    pub(crate) async fn connect(&self, address: SocketAddr) -> anyhow::Result<TcpStream> {
        let socket = self.within(|| {
            let domain = socket2::Domain::for_address(address);
            let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
            socket.set_nonblocking(true)?;
            Ok(std::net::TcpStream::from(socket))
        })?;
        let stream = TcpSocket::from_std_stream(socket).connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

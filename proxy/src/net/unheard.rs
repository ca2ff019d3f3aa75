//! Whether the kernel at the other end of a connection still answers.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};
use std::time::Duration;

use nix::libc;

/// How long nothing has come from the other end of a TCP connection, although it has to acknowledge what was sent to it, and that
/// has been repeated. Zero where it has nothing to acknowledge: then it may be silent for as long as it likes. A peer that does not
/// read and has closed its window has nothing to acknowledge, either.
///
/// # Errors
///
/// What the kernel said.
pub(crate) fn unheard(socket: &impl AsFd) -> io::Result<Duration> {
    let info = tcp_info(socket)?;
    let owes = info.tcpi_unacked > 0 && info.tcpi_retransmits > 0;
    let since = Duration::from_millis(u64::from(info.tcpi_last_ack_recv));
    Ok(if owes { since } else { Duration::ZERO })
}

/// `TCP_INFO` of tcp(7).
#[expect(
    unsafe_code,
    reason = "nobody wraps this option, whose length differs between kernels"
)]
fn tcp_info(socket: &impl AsFd) -> io::Result<libc::tcp_info> {
    let mut length = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).unwrap_or(0);
    // SAFETY: it is made of numbers, for each of which zero is one; and the kernel writes no more than `length` bytes to it.
    unsafe {
        let mut info: libc::tcp_info = std::mem::zeroed();
        let descriptor = socket.as_fd().as_raw_fd();
        let to = (&raw mut info).cast();
        let said = libc::getsockopt(
            descriptor,
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            to,
            &raw mut length,
        );
        nix::errno::Errno::result(said)?;
        Ok(info)
    }
}

#[cfg(test)]
mod tests {
    use socket2::SockRef;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpStream;
    use tokio::time::{Instant, timeout};

    use super::*;
    use crate::net::tests::{pair, vanish};

    /// The kernel repeats itself after 0.2, 0.6 and 1.4 s.
    const SOON: Duration = Duration::from_secs(3);
    const LOOK: Duration = Duration::from_millis(10);

    /// Writes until the peer's window is closed.
    async fn fill(client: &mut TcpStream) {
        SockRef::from(&*client)
            .set_send_buffer_size(16 << 10)
            .unwrap();
        let all = async {
            loop {
                client.write_all(&[7; 4096]).await.unwrap();
            }
        };
        timeout(LOOK * 10, all).await.expect_err("nobody reads it");
    }

    /// How long the peer is seen to be silent at the most, until it is long enough.
    async fn silence(client: &TcpStream) -> Duration {
        let (begun, mut most) = (Instant::now(), Duration::ZERO);
        while begun.elapsed() < SOON && most < SOON / 3 {
            tokio::time::sleep(LOOK).await;
            most = most.max(unheard(client).unwrap());
        }
        most
    }

    #[tokio::test]
    async fn who_does_not_read_is_there_and_who_acknowledges_nothing_is_not() {
        let ((mut idle, gone), (mut full, _unread)) = (pair().await, pair().await);
        fill(&mut full).await;
        vanish(&gone);
        idle.write_all(b"?").await.unwrap();
        let (of_gone, of_unread) = tokio::join!(silence(&idle), silence(&full));
        assert!(of_gone >= SOON / 3, "{of_gone:?}");
        assert_eq!(of_unread, Duration::ZERO);
    }
}

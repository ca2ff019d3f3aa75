//! A TCP socket with bytes in front of it.
//!
//! The bytes are either what detection has read already, or, under TLS, what one large read returned beyond the
//! 4 KiB that rustls asks for at a time. The buffer exists only while it holds something: an idle connection has none.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::PIECE;
use super::intake::{Intake, Reader};
use super::probe::{Duplicate, Probe};

/// How much one read takes from the kernel under TLS: what a relay writes at a time.
const READ_AHEAD: usize = PIECE;

thread_local! {
    /// Where the next large read lands. A connection keeps it while there is something in it, and gives it back.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// What a large read returned and nobody has asked for yet.
#[derive(Debug, Default)]
struct Ahead {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Ahead {
    /// Reads from the kernel, into a buffer that is empty.
    #[inline]
    fn poll_fill(
        &mut self,
        tcp: &mut TcpStream,
        reader: &mut Reader,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let most = ready!(reader.poll_turn(tcp, cx))?;
        self.bytes = SPARE.take();
        self.bytes.resize(READ_AHEAD, 0);
        let mut large = ReadBuf::new(&mut self.bytes[..most.min(READ_AHEAD)]);
        let read = Pin::new(tcp).poll_read(cx, &mut large);
        (self.start, self.end) = (0, large.filled().len());
        reader.took(self.end);
        self.give_back();
        read
    }

    /// Serves a reader from it.
    #[inline]
    fn give(&mut self, buf: &mut ReadBuf<'_>) {
        let length = (self.end - self.start).min(buf.remaining());
        buf.put_slice(&self.bytes[self.start..self.start + length]);
        self.start += length;
        self.give_back();
    }

    #[inline]
    fn give_back(&mut self) {
        if self.is_empty() {
            SPARE.set(std::mem::take(&mut self.bytes));
        }
    }

    #[inline]
    fn is_empty(&self) -> bool {
        self.start == self.end
    }
}

/// A TCP socket, the bytes that come before those still in the kernel, and whether to read ahead.
#[derive(Debug)]
pub struct Transport {
    tcp: TcpStream,
    pending: Bytes,
    reads_ahead: bool,
    ahead: Ahead,
    reader: Reader,
    duplicate: Option<Arc<Duplicate>>,
}

impl Transport {
    /// A socket of which nothing has been read.
    #[must_use]
    pub fn new(tcp: TcpStream) -> Self {
        Self::with_prefix(tcp, Bytes::new())
    }

    /// A socket from which `prefix` has been read already; readers get it first.
    #[must_use]
    pub fn with_prefix(tcp: TcpStream, prefix: Bytes) -> Self {
        Self {
            tcp,
            pending: prefix,
            reads_ahead: false,
            ahead: Ahead::default(),
            reader: Reader::default(),
            duplicate: None,
        }
    }

    /// Reads more than is asked for, for readers that ask for little at a time.
    #[must_use]
    pub fn reading_ahead(mut self) -> Self {
        self.reads_ahead = true;
        self
    }

    /// Reads no more than may be taken in.
    pub(super) fn takes_in(&mut self, intake: Intake) {
        self.reader = Reader::of(intake);
    }

    /// Reads less than there is room for.
    #[cold]
    fn poll_read_little(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
        most: usize,
    ) -> Poll<io::Result<()>> {
        let mut little = ReadBuf::new(buf.initialize_unfilled_to(most));
        let read = Pin::new(&mut self.tcp).poll_read(cx, &mut little);
        let length = little.filled().len();
        buf.advance(length);
        self.reader.took(length);
        if length == 0 {
            ready!(read)?;
            return Poll::Ready(self.ended());
        }
        read
    }

    /// Nothing more comes.
    #[cold]
    fn ended(&self) -> io::Result<()> {
        let duplicate = self.duplicate.as_ref();
        duplicate.map_or(Ok(()), |duplicate| duplicate.ended())
    }

    /// The socket.
    #[must_use]
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Puts bytes back that were read from this transport, before everything still to come.
    pub fn unread(&mut self, bytes: Bytes) {
        debug_assert!(
            self.pending.is_empty(),
            "bytes are unread in the order in which they came"
        );
        self.pending = bytes;
    }

    pub(super) fn probe(&mut self) -> io::Result<Probe> {
        let duplicate = match &self.duplicate {
            Some(duplicate) => duplicate,
            None => self.duplicate.insert(Arc::new(Duplicate::of(&self.tcp)?)),
        };
        Ok(Probe::of(duplicate))
    }
}

impl AsyncRead for Transport {
    #[inline]
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.pending.is_empty() {
            let length = this.pending.len().min(buf.remaining());
            buf.put_slice(&this.pending[..length]);
            this.pending.advance(length);
            if this.pending.is_empty() {
                this.pending = Bytes::new();
            }
            return Poll::Ready(Ok(()));
        }
        if !this.ahead.is_empty() || this.reads_ahead && buf.remaining() < READ_AHEAD {
            if this.ahead.is_empty() {
                ready!(this.ahead.poll_fill(&mut this.tcp, &mut this.reader, cx))?;
                if this.ahead.is_empty() {
                    return Poll::Ready(this.ended());
                }
            }
            this.ahead.give(buf);
            return Poll::Ready(Ok(()));
        }
        let most = ready!(this.reader.poll_turn(&this.tcp, cx))?;
        if most < buf.remaining() {
            return this.poll_read_little(cx, buf, most);
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.tcp).poll_read(cx, buf))?;
        let length = buf.filled().len() - before;
        this.reader.took(length);
        if length == 0 {
            return Poll::Ready(this.ended());
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Transport {
    #[inline]
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().tcp).poll_write(cx, buf)
    }

    #[inline]
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let tcp = Pin::new(&mut self.get_mut().tcp);
        // For a single piece send(2) costs the kernel less than writev(2): a thirtieth of sending and receiving it.
        match bufs {
            [piece] => tcp.poll_write(cx, piece),
            pieces => tcp.poll_write_vectored(cx, pieces),
        }
    }

    #[inline]
    fn is_write_vectored(&self) -> bool {
        true
    }

    #[inline]
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_flush(cx)
    }

    #[inline]
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::net::tests::pair;

    #[tokio::test]
    async fn prefix_comes_first_and_nothing_is_lost_in_small_reads() {
        let (mut client, server) = pair().await;
        client.write_all(b" world").await.unwrap();
        drop(client);
        let mut transport =
            Transport::with_prefix(server, Bytes::from_static(b"hello")).reading_ahead();
        let mut seen = Vec::new();
        let mut three = [0; 3];
        loop {
            match transport.read(&mut three).await.unwrap() {
                0 => break,
                n => seen.extend_from_slice(&three[..n]),
            }
        }
        assert_eq!(seen, b"hello world");
    }

    #[tokio::test]
    async fn what_was_read_ahead_comes_before_what_is_read_next_whatever_is_asked_for() {
        let (mut client, server) = pair().await;
        let mut random = fastrand::Rng::with_seed(1);
        let sent: Vec<u8> = std::iter::repeat_with(|| random.u8(..))
            .take(READ_AHEAD * 8)
            .collect();
        let sending = async {
            client.write_all(&sent).await.unwrap();
            drop(client);
        };
        let receiving = async {
            let mut transport = Transport::new(server).reading_ahead();
            let (mut seen, mut piece) = (Vec::new(), vec![0; READ_AHEAD * 2]);
            loop {
                let asked =
                    [1, 4096, READ_AHEAD - 1, READ_AHEAD, READ_AHEAD * 2][random.usize(..5)];
                match transport.read(&mut piece[..asked]).await.unwrap() {
                    0 => break,
                    n => seen.extend_from_slice(&piece[..n]),
                }
                assert_eq!(transport.ahead.is_empty(), transport.ahead.bytes.is_empty());
            }
            seen
        };
        let ((), seen) = tokio::join!(sending, receiving);
        assert!(seen == sent);
    }

    #[tokio::test]
    async fn nothing_is_read_beyond_what_may_be_taken_in_until_there_may_be_more() {
        for ahead in [false, true] {
            let (mut client, server) = pair().await;
            client.write_all(&[7; 10]).await.unwrap();
            let (intake, mut three) = (Intake::limited(Counter::default()), [0; 3]);
            let mut transport = Transport::new(server);
            transport.reads_ahead = ahead;
            transport.takes_in(intake.clone());
            intake.allow(1);
            assert_eq!(transport.read(&mut three).await.unwrap(), 3, "{ahead}");
            // What was read ahead is there already.
            let mut rest = vec![0; if ahead { 7 } else { 0 }];
            transport.read_exact(&mut rest).await.unwrap();
            client.write_all(&[7; 10]).await.unwrap();
            transport.tcp().readable().await.unwrap();
            tokio::time::timeout(std::time::Duration::ZERO, intake.runs_low())
                .await
                .expect("it is used up");
            let more = async {
                for _ in 0..100 {
                    tokio::task::yield_now().await;
                }
                assert_eq!(intake.left(), if ahead { -9 } else { -2 });
                // What was taken beyond what was allowed counts.
                intake.allow(if ahead { 10 } else { 3 });
            };
            let (read, ()) = tokio::join!(transport.read(&mut three), more);
            assert_eq!(read.unwrap(), 3, "{ahead}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_one_takes_far_beyond_what_is_allowed_does_not_hold_the_others_up_for_long() {
        let (mut client, server) = pair().await;
        client.write_all(b"window").await.unwrap();
        let intake = Intake::limited(Counter::default());
        let mut transport = Transport::new(server);
        transport.takes_in(intake.clone());
        transport.tcp().readable().await.unwrap();
        intake.allow(4096);
        intake.take(64 << 20);
        let mut window = [0; 6];
        let looks = async {
            for look in 0.. {
                assert!(look * 3 < 100, "it waits for longer than a client may");
                tokio::time::sleep(std::time::Duration::from_millis(3)).await;
                intake.allow(4096);
            }
        };
        tokio::select! {
            read = transport.read_exact(&mut window) => assert_eq!(read.unwrap(), 6),
            () = looks => unreachable!(),
        }
        assert_eq!(&window, b"window");
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_long_reads_a_little_and_only_as_long_as_few_do() {
        for (ahead, taken, expected) in [
            (false, 1, Some(256)),
            (true, 1, Some(256)),
            (false, 40 << 10, None),
        ] {
            let (mut client, server) = pair().await;
            client.write_all(&[7; 4096]).await.unwrap();
            let delayed = Counter::default();
            let intake = Intake::limited(delayed.clone());
            let mut transport = Transport::new(server);
            transport.reads_ahead = ahead;
            transport.takes_in(intake.clone());
            transport.tcp().readable().await.unwrap();
            intake.allow(0);
            intake.take(taken);
            let (mut much, begun) = ([0; 4096], tokio::time::Instant::now());
            let longest = std::time::Duration::from_millis(100);
            let read = tokio::time::timeout(longest, transport.read(&mut much)).await;
            let read = read.ok().map(Result::unwrap);
            assert_eq!(read, expected, "{ahead} {taken}");
            // 2, 4, 8, and 16 ms.
            assert!(begun.elapsed() >= std::time::Duration::from_millis(30));
            assert_eq!(intake.left(), -(taken as i64 + read.unwrap_or(0) as i64));
            assert_eq!(delayed.get(), 1);
        }
    }

    #[tokio::test]
    async fn probe_tells_an_open_connection_from_a_closed_one() {
        let (client, server) = pair().await;
        let mut transport = Transport::new(server);
        let probe = transport.probe().unwrap();
        assert!(!probe.is_stale());
        drop(client);
        transport.tcp().readable().await.unwrap();
        assert!(probe.is_stale());
    }

    #[tokio::test]
    async fn probe_of_a_dropped_connection_is_stale_and_does_not_hold_it_open() {
        let (mut client, server) = pair().await;
        let mut transport = Transport::new(server);
        let probe = transport.probe().unwrap();
        drop(transport);
        assert!(probe.is_stale());
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
    }
}

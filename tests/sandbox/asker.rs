//! A client that asks for the same under one name after the other, and looks at nothing but the status.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tulle_tests::{Arena, eventually};

use crate::place::Place;

const DEADLINE: Duration = Duration::from_secs(10);

/// A connection that asks under one name after the other.
pub(crate) struct Asker(Mutex<TcpStream>);

impl Asker {
    /// Connects from a pod of an app.
    pub(crate) async fn connect(
        arena: &Arena<'_>,
        from: &str,
        address: &str,
    ) -> anyhow::Result<Self> {
        let address: SocketAddr = address.parse()?;
        let place = Place::of(arena, from)?;
        let tcp = eventually(DEADLINE, async || place.connect(address).await).await?;
        Ok(Self(Mutex::new(tcp)))
    }

    /// The status of the answer.
    pub(crate) async fn ask(&self, host: &str) -> anyhow::Result<u16> {
        let mut tcp = self.0.lock().await;
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        tcp.write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let byte = timeout(DEADLINE, tcp.read_u8())
                .await
                .context("no answer")?;
            head.push(byte.with_context(|| format!("after {:?}", String::from_utf8_lossy(&head)))?);
        }
        let head = String::from_utf8(head)?.to_ascii_lowercase();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length:"));
        let length: usize = length.map_or(Ok(0), |length| length.trim().parse())?;
        let mut body = vec![0; length];
        timeout(DEADLINE, tcp.read_exact(&mut body)).await??;
        let status = head.split(' ').nth(1).context("it has a status")?;
        Ok(status.parse()?)
    }
}

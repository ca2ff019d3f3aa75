//! Opaque TCP: either end says all it has to say and closes its side, or breaks the connection, in every order.

use anyhow::{Context as _, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tulle_tests::{Mesh, eventually};

use super::{PATIENCE, Pair, reset, rest, say};

tulle_tests::cases! {
    row_27_opaque_bytes_arrive_exactly_whoever_ends_first;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Closes,
    Resets,
}

/// More than all buffers on the way take at once.
const SIZE: usize = 3_000_000;

fn bytes(seed: u8) -> Vec<u8> {
    (0..SIZE).map(|i| (i % 251) as u8 ^ seed).collect()
}

/// Says everything and ends: gives back what it can still listen to.
async fn speak(mut tcp: TcpStream, what: &[u8], end: End) -> anyhow::Result<Option<TcpStream>> {
    say(&mut tcp, what).await?;
    match end {
        End::Closes => {
            tcp.shutdown().await?;
            Ok(Some(tcp))
        }
        End::Resets => {
            reset(&tcp)?;
            Ok(None)
        }
    }
}

async fn row_27_opaque_bytes_arrive_exactly_whoever_ends_first(mesh: &Mesh) -> anyhow::Result<()> {
    let pair = Pair::new(mesh, "ends-opaque", "tcp").await?;
    let mut number = 0;
    for client_first in [true, false] {
        for (first, second) in [
            (End::Closes, End::Closes),
            (End::Closes, End::Resets),
            (End::Resets, End::Closes),
        ] {
            let what = format!("client first: {client_first}, {first:?} and then {second:?}");
            let talked = talk(&pair, client_first, first, second).await;
            talked.context(what.clone())?;
            let flag = blamed(client_first, first, second);
            logged(&pair, number, flag).await.context(what)?;
            number += 1;
        }
    }
    Ok(())
}

async fn talk(pair: &Pair<'_>, client_first: bool, first: End, second: End) -> anyhow::Result<()> {
    let mut client = pair.connect().await?;
    say(&mut client, b"!").await?;
    let mut server = pair.listener.accept().await?.0;
    ensure!(server.read_u8().await? == b'!');
    let (one, mut other) = if client_first {
        (client, server)
    } else {
        (server, client)
    };
    let (said, reply) = (bytes(1), bytes(2));
    let hearing = async {
        let heard = rest(&mut other).await?;
        // Who was broken off has nobody to speak to.
        if first == End::Closes {
            speak(other, &reply, second).await?;
        }
        anyhow::Ok(heard)
    };
    let speaking = async {
        match speak(one, &said, first).await? {
            Some(mut one) => rest(&mut one).await.map(Some),
            None => Ok(None),
        }
    };
    let ((heard, peace), replied) = tokio::try_join!(hearing, speaking)?;
    ensure!(peace == (first == End::Closes), "in peace: {peace}");
    ensure!(said.starts_with(&heard), "other bytes came");
    ensure!(
        first == End::Resets || heard.len() == SIZE,
        "{} of {SIZE} bytes came",
        heard.len()
    );
    if let Some((replied, peace)) = replied {
        ensure!(reply.starts_with(&replied), "other bytes came back");
        ensure!(peace == (second == End::Closes), "back in peace: {peace}");
        ensure!(
            second == End::Resets || replied.len() == SIZE,
            "{} of {SIZE} bytes came back",
            replied.len()
        );
    }
    Ok(())
}

/// Who has broken the connection, if anybody has, in the words of the access log.
fn blamed(client_first: bool, first: End, second: End) -> &'static str {
    let breaks = match (first, second) {
        (End::Closes, End::Closes) => return "-",
        (End::Resets, _) => client_first,
        (End::Closes, End::Resets) => !client_first,
    };
    if breaks { "DC" } else { "UC" }
}

/// Both sidecars say so of the connection of that number.
async fn logged(pair: &Pair<'_>, number: usize, flag: &str) -> anyhow::Result<()> {
    for pod in ["client", "web"] {
        eventually(PATIENCE, async || {
            let log = pair.arena.access_log(pod)?;
            ensure!(log.len() == number + 1, "{pod} has {} lines", log.len());
            let line = &log[number];
            ensure!(line["response_flags"] == flag, "{pod}, not {flag}: {line}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

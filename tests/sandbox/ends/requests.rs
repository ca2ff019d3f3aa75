//! Clients of HTTP/2 that take their requests back, whatever they call that, and clients of HTTP/1 that are gone: what an
//! app of HTTP/2 makes of the half that it has.

use anyhow::{Context as _, ensure};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tulle_tests::Mesh;

use super::frames::{self, Peer};
use super::http2::{App, End, Version};
use super::{PATIENCE, Pair, flagged, head, reset, say};

tulle_tests::cases! {
    row_27_what_a_client_takes_back_never_looks_whole_to_an_app_of_http2;
}

/// What a client does when the app has half of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// Says some more, and in the same breath takes it back.
    Reset(u32),
    Closes,
    Breaks,
    /// Says that it wants no more of the connection, and closes it.
    Leaves,
    /// What is an end, unless more was announced.
    Ends,
    Finishes,
}

const OF_HTTP1: [Then; 3] = [Then::Closes, Then::Breaks, Then::Finishes];
const OF_HTTP2: [Then; 9] = [
    Then::Reset(0),
    Then::Reset(8),
    Then::Reset(2),
    Then::Reset(7),
    Then::Closes,
    Then::Breaks,
    Then::Leaves,
    Then::Ends,
    Then::Finishes,
];
/// What a request may announce: "half" and " whole", or nothing.
const LENGTHS: [Option<&str>; 2] = [Some("10"), None];
/// Of the only request on a connection.
const STREAM: u32 = 1;

enum Client {
    Http1(TcpStream, Option<&'static str>),
    Http2(Peer),
}

impl Client {
    async fn ask(
        pair: &Pair<'_>,
        version: Version,
        path: &str,
        length: Option<&'static str>,
    ) -> anyhow::Result<Self> {
        let mut tcp = pair.connect().await?;
        if version == Version::Http2 {
            let mut peer = Peer::client(tcp, 0xffff).await?;
            let half = frames::data(STREAM, b"half", false);
            let begins = [frames::post(STREAM, path, length), half].concat();
            peer.say(&begins).await?;
            return Ok(Self::Http2(peer));
        }
        let (framing, half) = match length {
            Some(length) => (format!("content-length: {length}"), "half"),
            None => ("transfer-encoding: chunked".to_owned(), "4\r\nhalf\r\n"),
        };
        let begins = format!("POST {path} HTTP/1.1\r\nhost: web\r\n{framing}\r\n\r\n{half}");
        say(&mut tcp, begins.as_bytes()).await?;
        Ok(Self::Http1(tcp, length))
    }

    /// Gives back who still has an answer to come.
    async fn goes_on(mut self, then: Then) -> anyhow::Result<Option<Self>> {
        match (&mut self, then) {
            (Self::Http2(peer), Then::Reset(code)) => {
                let more = frames::data(STREAM, b" more", false);
                let more = [more, frames::reset(STREAM, code)].concat();
                peer.say(&more).await?;
            }
            (Self::Http2(peer), Then::Leaves) => {
                peer.say(&frames::goaway(0)).await?;
                return Ok(None);
            }
            (Self::Http2(peer), Then::Ends) => {
                peer.say(&frames::data(STREAM, b"", true)).await?;
            }
            (Self::Http2(peer), Then::Finishes) => {
                peer.say(&frames::data(STREAM, b" whole", true)).await?;
            }
            (Self::Http1(tcp, Some(_)), Then::Finishes) => say(tcp, b" whole").await?,
            (Self::Http1(tcp, None), Then::Finishes) => {
                say(tcp, b"6\r\n whole\r\n0\r\n\r\n").await?;
            }
            (Self::Http1(tcp, _), Then::Breaks) => reset(tcp)?,
            (Self::Http2(peer), Then::Breaks) => reset(&peer.tcp)?,
            (_, Then::Closes) => {}
            (Self::Http1(..), other) => anyhow::bail!("HTTP/1 knows no {other:?}"),
        }
        let gone = [Then::Closes, Then::Breaks].contains(&then);
        Ok((!gone).then_some(self))
    }

    /// It is told 200.
    async fn is_answered(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Http1(tcp, _) => {
                let answer = head(tcp).await.context("no answer")?;
                ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            }
            Self::Http2(peer) => loop {
                let frame = peer.next().await.context("no answer")?;
                if frame.kind == frames::HEADERS {
                    let good = frame.payload.first() == Some(&frames::OK);
                    ensure!(good, "{frame:?}");
                    break;
                }
            },
        }
        Ok(())
    }
}

/// What becomes of a request at the app; true: it was whole there, and is answered.
async fn plays(app: &mut App<'_>, client: Client, then: Then) -> anyhow::Result<bool> {
    let stream = app.asked().await?;
    let (half, end) = app.takes(stream, "half").await?;
    ensure!(half == "half" && end == End::Open, "{half:?} and {end:?}");
    let client = client.goes_on(then).await?;
    let (rest, end) = app.takes(stream, "").await?;
    if end != End::Whole {
        let cut = end.is_cut() && !rest.contains("whole");
        ensure!(cut, "{rest:?} and {end:?}");
        return Ok(false);
    }
    let finished = then == Then::Finishes;
    let expected = finished || then == Then::Ends;
    ensure!(
        expected && rest.contains("whole") == finished,
        "{rest:?} and {end:?}"
    );
    app.say(&frames::answer(stream, None, true)).await?;
    let mut client = client.context("nobody waits for the answer")?;
    client.is_answered().await?;
    Ok(true)
}

async fn row_27_what_a_client_takes_back_never_looks_whole_to_an_app_of_http2(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let pair = Pair::new(mesh, "ends-taken-back", "http2").await?;
    let mut app = App::new(&pair.listener);
    let mut expected = Vec::new();
    for (version, ends) in [(Version::Http1, &OF_HTTP1[..]), (Version::Http2, &OF_HTTP2)] {
        for length in LENGTHS {
            for &then in ends {
                let path = format!("/{}", expected.len());
                let what = format!("{path}, {version:?}: {length:?}, {then:?}");
                let played = async {
                    let client = Client::ask(&pair, version, &path, length).await?;
                    plays(&mut app, client, then).await
                };
                let whole = timeout(PATIENCE, played).await.context(what.clone())?;
                let whole = whole.context(what.clone())?;
                let good = then == Then::Finishes || then == Then::Ends && length.is_none();
                ensure!(whole == good, "{what}: whole: {whole}");
                expected.push(if whole { ["-"; 2] } else { ["DC"; 2] });
            }
        }
    }
    flagged(&pair, &expected).await
}

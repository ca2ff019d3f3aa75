//! HTTP/2: apps that take their answers back, or answer early and then have heard enough, for clients of either version.

use anyhow::{Context as _, bail, ensure};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tulle_tests::Mesh;

use super::frames::{self, DATA, Frame, HEADERS, Peer, RESET};
use super::http::Answer;
use super::{PATIENCE, Pair, flagged, reset, say};

tulle_tests::cases! {
    row_27_what_an_app_of_http2_takes_back_never_looks_whole_to_its_client;
    row_27_what_an_app_of_http2_answers_early_arrives_whole;
}

/// An app that a test speaks for.
pub(super) struct App<'a> {
    listener: &'a TcpListener,
    peer: Option<Peer>,
    /// How many connections there have been.
    accepted: usize,
}

impl<'a> App<'a> {
    pub(super) fn new(listener: &'a TcpListener) -> Self {
        Self {
            listener,
            peer: None,
            accepted: 0,
        }
    }

    /// The stream of the next request: on the connection that there is, or on one that comes.
    pub(super) async fn asked(&mut self) -> anyhow::Result<u32> {
        loop {
            tokio::select! {
                biased;
                frame = next(&mut self.peer) => match frame {
                    None => self.peer = None,
                    Some(frame) if frame.kind == HEADERS => return Ok(frame.stream),
                    Some(_) => {}
                },
                accepted = self.listener.accept() => {
                    ensure!(self.peer.is_none(), "a second connection beside one that lives");
                    self.peer = Some(Peer::server(accepted?.0).await?);
                    self.accepted += 1;
                }
            }
        }
    }

    pub(super) async fn say(&mut self, frames: &[u8]) -> anyhow::Result<()> {
        let peer = self.peer.as_mut().context("nobody is connected")?;
        peer.say(frames).await
    }

    /// What comes of the stream's body, up to the end of it or to where it says that; and how it ends, if it does.
    pub(super) async fn takes(&mut self, stream: u32, upto: &str) -> anyhow::Result<(String, End)> {
        let mut body = Vec::new();
        let end = loop {
            if !upto.is_empty() && body.ends_with(upto.as_bytes()) {
                break End::Open;
            }
            match next(&mut self.peer).await {
                None => break End::Gone,
                Some(frame) if frame.stream != stream => {}
                Some(frame) => {
                    if frame.kind == DATA {
                        body.extend_from_slice(&frame.payload);
                    }
                    if let Some(end) = End::of(&frame) {
                        break end;
                    }
                }
            }
        };
        Ok((String::from_utf8(body)?, end))
    }
}

/// The next frame on a connection that may come yet.
async fn next(peer: &mut Option<Peer>) -> Option<Frame> {
    match peer {
        Some(peer) => peer.next().await,
        None => std::future::pending().await,
    }
}

/// How a stream ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It has not.
    Open,
    /// With all there is to say.
    Whole,
    /// By a reset with that code.
    Reset(u32),
    /// With its connection.
    Gone,
}

impl End {
    fn of(frame: &Frame) -> Option<Self> {
        match frame.kind {
            RESET => Some(Self::Reset(frame.code()?)),
            _ => frame.is_last().then_some(Self::Whole),
        }
    }

    /// Nobody takes it for anything but the failure of something that had begun: not for the end of it, nor for something
    /// that never was.
    pub(super) fn is_cut(self) -> bool {
        const NO_ERROR: u32 = 0;
        const REFUSED: u32 = 7;
        match self {
            Self::Reset(code) => code != NO_ERROR && code != REFUSED,
            Self::Gone => true,
            Self::Open | Self::Whole => false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    Http1,
    Http2,
}

const VERSIONS: [Version; 2] = [Version::Http1, Version::Http2];

/// A client that has asked for something, with half a body, on a connection of its own.
enum Client {
    Http1 {
        tcp: TcpStream,
        came: Vec<u8>,
    },
    Http2 {
        peer: Peer,
        /// Whether it was told 200.
        good: Option<bool>,
        body: Vec<u8>,
        end: End,
    },
}

/// Of the only request on a connection.
const STREAM: u32 = 1;
/// What a client allows an answer that is to come at once.
const WINDOW: u32 = 0xffff;

impl Client {
    async fn ask(
        pair: &Pair<'_>,
        version: Version,
        path: &str,
        window: u32,
    ) -> anyhow::Result<Self> {
        let mut tcp = pair.connect().await?;
        match version {
            Version::Http1 => {
                let request = format!(
                    "POST {path} HTTP/1.1\r\nhost: web\r\ncontent-length: 8\r\nconnection: close\r\n\r\nhalf"
                );
                say(&mut tcp, request.as_bytes()).await?;
                let came = Vec::new();
                Ok(Self::Http1 { tcp, came })
            }
            Version::Http2 => {
                let mut peer = Peer::client(tcp, window).await?;
                let head = frames::post(STREAM, path, Some("8"));
                let half = frames::data(STREAM, b"half", false);
                peer.say(&[head, half].concat()).await?;
                Ok(Self::Http2 {
                    peer,
                    good: None,
                    body: Vec::new(),
                    end: End::Open,
                })
            }
        }
    }

    /// Reads some more; false: there is no more.
    async fn read(&mut self) -> anyhow::Result<bool> {
        match self {
            Self::Http1 { tcp, came } => Ok(tcp.read_buf(came).await? != 0),
            Self::Http2 {
                peer,
                good,
                body,
                end,
            } => {
                let Some(frame) = peer.next().await else {
                    *end = End::Gone;
                    return Ok(false);
                };
                if frame.stream != STREAM {
                    return Ok(true);
                }
                match frame.kind {
                    HEADERS if good.is_none() => {
                        *good = Some(frame.payload.first() == Some(&frames::OK));
                    }
                    DATA => body.extend_from_slice(&frame.payload),
                    _ => {}
                }
                *end = End::of(&frame).unwrap_or(*end);
                Ok(*end == End::Open)
            }
        }
    }

    /// Until it has seen the head of an answer, and that much of its body.
    async fn sees(&mut self, body: &str) -> anyhow::Result<()> {
        loop {
            let seen = match self {
                Self::Http1 { came, .. } => {
                    let text = String::from_utf8_lossy(came);
                    let parts = text.split_once("\r\n\r\n");
                    parts.is_some_and(|(_, rest)| rest.contains(body))
                }
                Self::Http2 { good, body: it, .. } => good.is_some() && it == body.as_bytes(),
            };
            if seen {
                return Ok(());
            }
            ensure!(self.read().await?, "no {body:?} came");
        }
    }

    /// What it makes of all that comes.
    async fn answer(mut self) -> anyhow::Result<Told> {
        let peace = loop {
            match self.read().await {
                Ok(true) => {}
                Ok(false) => break true,
                Err(_) => break false,
            }
        };
        match self {
            Self::Http1 { came, .. } if came.is_empty() => Ok(Told::Cut {
                body: String::new(),
            }),
            Self::Http1 { came, .. } => {
                let answer = Answer::parse(&came, peace)?;
                Ok(match (answer.status, answer.body) {
                    (200, Some(body)) => Told::Whole { body },
                    (200, None) => Told::Cut {
                        body: String::from_utf8_lossy(&came).into_owned(),
                    },
                    (500.., Some(_)) => Told::Failed,
                    other => bail!("{other:?}"),
                })
            }
            Self::Http2 {
                good, body, end, ..
            } => {
                let body = String::from_utf8(body)?;
                Ok(match (good, end) {
                    (Some(true), End::Whole) => Told::Whole { body },
                    (Some(false), End::Whole) => Told::Failed,
                    (Some(true) | None, end) if end.is_cut() => Told::Cut { body },
                    other => bail!("{other:?} {body:?}"),
                })
            }
        }
    }
}

/// What a client was told.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Whole {
        body: String,
    },
    /// That there is no answer, in words.
    Failed,
    Cut {
        body: String,
    },
}

/// What an app says of an answer before it does the other thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begins {
    Nothing,
    Head(Option<&'static str>),
    Half(Option<&'static str>),
}

impl Begins {
    fn frames(self, stream: u32) -> Vec<u8> {
        match self {
            Self::Nothing => Vec::new(),
            Self::Head(length) => frames::answer(stream, length, false),
            Self::Half(length) => {
                let head = frames::answer(stream, length, false);
                [head, frames::data(stream, b"half", false)].concat()
            }
        }
    }
}

/// What an app does instead of saying the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Reset(u32),
    Closes,
    Breaks,
    /// Says that it will take no more, as one does that is about to end in peace, and ends.
    Leaves,
    /// What is an end, unless more was announced.
    Ends,
    /// Says all the rest.
    Finishes,
}

impl Then {
    async fn happens(self, app: &mut App<'_>, stream: u32) -> anyhow::Result<()> {
        match self {
            Self::Reset(code) => return app.say(&frames::reset(stream, code)).await,
            Self::Ends => return app.say(&frames::data(stream, b"", true)).await,
            Self::Finishes => return app.say(&frames::data(stream, b" whole", true)).await,
            Self::Leaves => app.say(&frames::goaway(stream)).await?,
            Self::Breaks => {
                // What was said is on its way before the reset, which destroys what is not yet read.
                tokio::task::yield_now().await;
                app.peer.as_ref().map_or(Ok(()), |peer| reset(&peer.tcp))?;
            }
            Self::Closes => {}
        }
        app.peer = None;
        Ok(())
    }
}

const CUTS: [Then; 7] = [
    Then::Reset(0),
    Then::Reset(8),
    Then::Reset(2),
    Then::Reset(7),
    Then::Closes,
    Then::Breaks,
    Then::Leaves,
];
const BEGINS: [Begins; 5] = [
    Begins::Nothing,
    Begins::Head(Some("10")),
    Begins::Head(None),
    Begins::Half(Some("10")),
    Begins::Half(None),
];

/// How an answer begins and ends, and what comes of it if it is whole.
fn endings() -> Vec<(Begins, Then, Option<&'static str>)> {
    let cuts = BEGINS
        .iter()
        .flat_map(|&begins| CUTS.map(|then| (begins, then, None)));
    // Who did not process a request is asked again, before anything has been answered.
    let cuts = cuts.filter(|it| (it.0, it.1) != (Begins::Nothing, Then::Reset(7)));
    let others = [
        (Begins::Half(Some("10")), Then::Ends, None),
        (Begins::Half(None), Then::Ends, Some("half")),
        (Begins::Half(Some("10")), Then::Finishes, Some("half whole")),
        (Begins::Half(None), Then::Finishes, Some("half whole")),
    ];
    cuts.chain(others).collect()
}

async fn row_27_what_an_app_of_http2_takes_back_never_looks_whole_to_its_client(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let pair = Pair::new(mesh, "ends-http2", "http2").await?;
    let mut app = App::new(&pair.listener);
    let mut expected = Vec::new();
    for version in VERSIONS {
        for (begins, then, whole) in endings() {
            // All at once, and when its client has seen what there is to see.
            for seen in [false, true] {
                let path = format!("/{}", expected.len());
                let what = format!("{path}, {version:?}: {begins:?}, {then:?}, seen: {seen}");
                let mut client = Client::ask(&pair, version, &path, WINDOW).await?;
                let told = async {
                    let stream = app.asked().await?;
                    app.say(&begins.frames(stream)).await?;
                    match begins {
                        Begins::Half(_) if seen => client.sees("half").await?,
                        Begins::Head(_) if seen => client.sees("").await?,
                        _ => {}
                    }
                    then.happens(&mut app, stream).await?;
                    client.answer().await
                };
                let told = timeout(PATIENCE, told).await.context(what.clone())?;
                let told = told.context(what.clone())?;
                let body = whole.unwrap_or_default().to_owned();
                let good = match whole {
                    Some(_) => told == Told::Whole { body },
                    None if seen && begins != Begins::Nothing => matches!(told, Told::Cut { .. }),
                    None => !matches!(told, Told::Whole { .. }),
                };
                ensure!(good, "{what}: {told:?}");
                expected.push(match (whole, begins, then) {
                    (Some(_), ..) => ["-", "-"],
                    (None, Begins::Nothing, Then::Reset(_)) => ["-", "UR"],
                    (None, Begins::Nothing, _) => ["-", "UC"],
                    (None, ..) if seen => ["UC", "UC"],
                    // Any hop may not have passed on what it has of the answer before it is told of the end.
                    (None, ..) => ["- UC UR", "UC"],
                });
            }
        }
    }
    flagged(&pair, &expected).await
}

/// What an app does when it has answered the whole of a request that is not.
const ENOUGH: [Option<Then>; 3] = [None, Some(Then::Reset(0)), Some(Then::Reset(8))];

/// A whole answer.
fn early(stream: u32, body: &str, ends_in_trailers: bool) -> Vec<u8> {
    let mut frames = frames::answer(stream, None, body.is_empty());
    let mut pieces = body.as_bytes().chunks(16_000).peekable();
    while let Some(piece) = pieces.next() {
        let last = pieces.peek().is_none() && !ends_in_trailers;
        frames.extend(frames::data(stream, piece, last));
    }
    if ends_in_trailers {
        frames.extend(frames::trailers(stream));
    }
    frames
}

async fn row_27_what_an_app_of_http2_answers_early_arrives_whole(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let pair = Pair::new(mesh, "ends-early", "http2").await?;
    let mut app = App::new(&pair.listener);
    let mut expected = Vec::new();
    let long = "whole".repeat(12_000);
    let answers = [
        ("", false),
        ("whole", false),
        ("whole", true),
        (&long, false),
    ];
    for version in VERSIONS {
        for (body, ends_in_trailers) in answers {
            for then in ENOUGH {
                // Room for all of it at once, or not before the app has ended.
                for window in [WINDOW, 0] {
                    let path = format!("/{}", expected.len());
                    let what = format!(
                        "{path}, {version:?}: {} bytes, {ends_in_trailers}, {then:?}, {window}",
                        body.len()
                    );
                    let mut client = Client::ask(&pair, version, &path, window).await?;
                    let told = async {
                        let stream = app.asked().await?;
                        let (half, end) = app.takes(stream, "half").await?;
                        ensure!(half == "half" && end == End::Open, "{half:?}, {end:?}");
                        app.say(&early(stream, body, ends_in_trailers)).await?;
                        if let Some(then) = then {
                            then.happens(&mut app, stream).await?;
                        }
                        if let Client::Http2 { peer, .. } = &mut client
                            && window == 0
                        {
                            peer.say(&frames::grow(STREAM, WINDOW)).await?;
                        }
                        client.answer().await
                    };
                    let told = timeout(PATIENCE, told).await.context(what.clone())?;
                    let told = told.context(what.clone())?;
                    let body = body.to_owned();
                    ensure!(told == Told::Whole { body }, "{what}: {told:?}");
                    expected.push(["-"; 2]);
                }
            }
        }
    }
    flagged(&pair, &expected).await
}

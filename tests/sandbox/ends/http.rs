//! HTTP/1: apps that cut their answers, and clients that cut their requests.

use anyhow::{Context as _, ensure};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tulle_tests::Mesh;

use super::{PATIENCE, Pair, head, reset, rest, say};

tulle_tests::cases! {
    row_27_what_an_app_cuts_never_looks_whole_to_its_client;
    row_27_what_a_client_cuts_never_looks_whole_to_the_app;
}

/// What an app does after it has read a request.
#[derive(Clone, Copy, Debug)]
struct Ending {
    says: &'static str,
    resets: bool,
    /// The body that the client has to get; `None`: an error, or an answer that is visibly cut.
    whole: Option<&'static str>,
    /// What the access logs of the client's sidecar and the app's say.
    flags: [&'static str; 2],
}

const fn ending(
    says: &'static str,
    resets: bool,
    whole: Option<&'static str>,
    flags: [&'static str; 2],
) -> Ending {
    Ending {
        says,
        resets,
        whole,
        flags,
    }
}

const HALF: &str = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf";
const HALF_CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n";
const HALF_HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-le";
/// An answer that began is cut at both sidecars; one that never did is told in words by the first.
const ENDINGS: [Ending; 13] = [
    ending("", false, None, ["-", "UC"]),
    ending("", true, None, ["-", "UC"]),
    ending(HALF_HEAD, false, None, ["-", "UC"]),
    ending(HALF_HEAD, true, None, ["-", "UC"]),
    ending(HALF, false, None, ["UC", "UC"]),
    ending(HALF, true, None, ["UC", "UC"]),
    ending(
        "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n",
        false,
        None,
        ["UC", "UC"],
    ),
    ending(HALF_CHUNKED, false, None, ["UC", "UC"]),
    ending(HALF_CHUNKED, true, None, ["UC", "UC"]),
    // Its end is the end of the connection: if that ends in peace.
    ending("HTTP/1.1 200 OK\r\n\r\nhalf", true, None, ["UC", "UC"]),
    ending(
        "HTTP/1.1 200 OK\r\n\r\nwhole",
        false,
        Some("whole"),
        ["-", "-"],
    ),
    ending(
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwhole",
        false,
        Some("whole"),
        ["-", "-"],
    ),
    ending(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nwhole\r\n0\r\n\r\n",
        false,
        Some("whole"),
        ["-", "-"],
    ),
];

/// The app: `/N` is answered as the ending of that number says.
async fn answer(listener: &TcpListener) -> anyhow::Result<()> {
    loop {
        let (mut tcp, _) = listener.accept().await?;
        let Some(head) = head(&mut tcp).await else {
            continue;
        };
        let number = head.split(['/', ' ']).nth(2).context("no path")?;
        let ending = ENDINGS[number.parse::<usize>()?];
        say(&mut tcp, ending.says.as_bytes()).await?;
        if ending.resets {
            // What was said is on its way before the reset, which destroys what is not yet read.
            tokio::task::yield_now().await;
            reset(&tcp)?;
        }
    }
}

/// An answer as its client has to read it.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// The body; `None`: it is not whole.
    pub(super) body: Option<String>,
}

impl Answer {
    pub(super) fn parse(bytes: &[u8], peace: bool) -> anyhow::Result<Self> {
        let text = String::from_utf8(bytes.to_vec())?;
        let (head, body) = text.split_once("\r\n\r\n").context("no whole head")?;
        let status = head.get(9..12).context("no status")?.parse()?;
        let head = head.to_ascii_lowercase();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        let body = if head.contains("transfer-encoding: chunked") {
            dechunked(body)
        } else if let Some(length) = length {
            let length = length.parse::<usize>()?;
            (body.len() == length).then(|| body.to_owned())
        } else {
            // It ends with its connection.
            peace.then(|| body.to_owned())
        };
        Ok(Self { status, body })
    }
}

/// The bytes of all chunks, if the last one is there.
fn dechunked(mut rest: &str) -> Option<String> {
    let mut body = String::new();
    loop {
        let (size, after) = rest.split_once("\r\n")?;
        let size = usize::from_str_radix(size, 16).ok()?;
        body.push_str(after.get(..size)?);
        rest = after.get(size..)?.strip_prefix("\r\n")?;
        if size == 0 {
            return Some(body);
        }
    }
}

async fn row_27_what_an_app_cuts_never_looks_whole_to_its_client(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let pair = Pair::new(mesh, "ends-answers", "http").await?;
    let asking = async {
        // The first lookup of the service has been made before anything is cut.
        for (number, ending) in ENDINGS.iter().enumerate() {
            ask(&pair, number, ending)
                .await
                .with_context(|| format!("{ending:?}"))?;
        }
        Ok(())
    };
    tokio::select! {
        asked = asking => asked,
        failed = answer(&pair.listener) => failed,
    }
}

async fn ask(pair: &Pair<'_>, number: usize, ending: &Ending) -> anyhow::Result<()> {
    let mut tcp = pair.connect().await?;
    let request = format!(
        "POST /{number} HTTP/1.1\r\nhost: web\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    );
    say(&mut tcp, request.as_bytes()).await?;
    let (bytes, peace) = rest(&mut tcp).await?;
    // The cut may overtake the head: an end before the first byte is as plain as one after it.
    if bytes.is_empty() && ending.whole.is_none() {
        return logged_as(pair, number, ending).await;
    }
    let answer = Answer::parse(&bytes, peace)
        .with_context(|| format!("{:?}", String::from_utf8_lossy(&bytes)))?;
    match ending.whole {
        Some(body) => ensure!(
            answer.status == 200 && answer.body.as_deref() == Some(body),
            "{answer:?}"
        ),
        None => ensure!(
            answer.body.is_none() || (500..600).contains(&answer.status),
            "a cut answer looks whole: {answer:?}"
        ),
    }
    logged_as(pair, number, ending).await
}

/// Both access logs name who cut the answer.
async fn logged_as(pair: &Pair<'_>, number: usize, ending: &Ending) -> anyhow::Result<()> {
    for (pod, flag) in ["client", "web"].into_iter().zip(ending.flags) {
        let path = format!("/{number}");
        let line = pair
            .logged(pod, |line| line["path"] == path.as_str())
            .await?;
        ensure!(line["response_flags"] == flag, "{pod}, not {flag}: {line}");
    }
    Ok(())
}

/// How a client begins the body of its request, goes on when that is at the app, and ends.
struct Request {
    framing: &'static str,
    begin: &'static str,
    then: &'static str,
    ends: End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// With all that it has announced.
    Whole,
    Closes,
    Resets,
}

const fn request(
    framing: &'static str,
    begin: &'static str,
    then: &'static str,
    ends: End,
) -> Request {
    Request {
        framing,
        begin,
        then,
        ends,
    }
}

const LENGTH: &str = "content-length: 10";
const CHUNKED: &str = "transfer-encoding: chunked";
const REQUESTS: [Request; 8] = [
    request(LENGTH, "half", "", End::Closes),
    request(LENGTH, "half", "", End::Resets),
    request(CHUNKED, "4\r\nhalf\r\n", "", End::Closes),
    request(CHUNKED, "4\r\nhalf\r\n", "", End::Resets),
    // In the middle of a chunk.
    request(CHUNKED, "8\r\nhalf", "", End::Closes),
    request(CHUNKED, "8\r\nhalf", "", End::Resets),
    request(LENGTH, "half", " whole", End::Whole),
    request(
        CHUNKED,
        "4\r\nhalf\r\n",
        "6\r\n whole\r\n0\r\n\r\n",
        End::Whole,
    ),
];

/// The app: takes what comes of each request, says when it has begun, and answers those that are whole.
async fn take(
    listener: &TcpListener,
    begun: mpsc::Sender<()>,
    took: mpsc::Sender<String>,
) -> anyhow::Result<()> {
    loop {
        let (mut tcp, _) = listener.accept().await?;
        if head(&mut tcp).await.is_some() {
            let body = body(&mut tcp, &begun).await;
            if body.contains("whole") {
                say(&mut tcp, b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await?;
            }
            took.send(body).await?;
        }
    }
}

/// What comes of a body, up to the end of the connection or of the message.
async fn body(tcp: &mut TcpStream, begun: &mpsc::Sender<()>) -> String {
    let mut body = Vec::new();
    while !body.ends_with(b" whole") && !body.ends_with(b"whole\r\n0\r\n\r\n") {
        let Ok(byte) = tcp.read_u8().await else { break };
        body.push(byte);
        if body.ends_with(b"half") {
            let _ = begun.send(()).await;
        }
        // Chunked, the end of the message comes after this.
        if body.ends_with(b" whole") && body.starts_with(b"4\r\n") {
            let _ = tcp.read_exact(&mut [0; 7]).await;
        }
    }
    String::from_utf8_lossy(&body).into_owned()
}

async fn row_27_what_a_client_cuts_never_looks_whole_to_the_app(mesh: &Mesh) -> anyhow::Result<()> {
    let pair = Pair::new(mesh, "ends-requests", "http").await?;
    let (begin, mut begun) = mpsc::channel(1);
    let (give, mut taken) = mpsc::channel(1);
    let sending = async {
        for (number, request) in REQUESTS.iter().enumerate() {
            let sent = send(&pair, number, request, &mut begun, &mut taken);
            let what = format!("{number}: {} and {:?}", request.framing, request.ends);
            timeout(PATIENCE, sent)
                .await
                .context(what.clone())?
                .context(what)?;
        }
        Ok(())
    };
    tokio::select! {
        sent = sending => sent,
        failed = take(&pair.listener, begin, give) => failed,
    }
}

async fn send(
    pair: &Pair<'_>,
    number: usize,
    request: &Request,
    begun: &mut mpsc::Receiver<()>,
    taken: &mut mpsc::Receiver<String>,
) -> anyhow::Result<()> {
    let mut tcp = pair.connect().await?;
    let head = format!(
        "POST /{number} HTTP/1.1\r\nhost: web\r\n{}\r\n\r\n{}",
        request.framing, request.begin
    );
    say(&mut tcp, head.as_bytes()).await?;
    begun.recv().await.context("the app is gone")?;
    match request.ends {
        End::Whole => say(&mut tcp, request.then.as_bytes()).await?,
        End::Closes => tokio::io::AsyncWriteExt::shutdown(&mut tcp).await?,
        End::Resets => {
            reset(&tcp)?;
            drop(tcp);
            return cut(pair, number, taken).await;
        }
    }
    if request.ends == End::Closes {
        return cut(pair, number, taken).await;
    }
    let took = taken.recv().await.context("the app is gone")?;
    ensure!(took.contains("whole"), "the app got {took:?}");
    let answer = super::head(&mut tcp).await.context("no answer")?;
    ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    flags(pair, number, "-").await
}

/// The app has been told that the request is cut, and both sidecars say by whom.
async fn cut(
    pair: &Pair<'_>,
    number: usize,
    taken: &mut mpsc::Receiver<String>,
) -> anyhow::Result<()> {
    let took = taken.recv().await.context("the app is gone")?;
    let whole = took.contains("whole") || took.ends_with("0\r\n\r\n");
    ensure!(took.contains("half") && !whole, "the app got {took:?}");
    flags(pair, number, "DC").await
}

async fn flags(pair: &Pair<'_>, number: usize, flag: &str) -> anyhow::Result<()> {
    let path = format!("/{number}");
    for pod in ["client", "web"] {
        let line = pair
            .logged(pod, |line| line["path"] == path.as_str())
            .await?;
        ensure!(line["response_flags"] == flag, "{pod}, not {flag}: {line}");
    }
    Ok(())
}

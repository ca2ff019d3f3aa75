//! Clients that mean no good: a role of the test program, run in a pod.
//!
//! `tulle attack WAY HOST:PORT NUMBER` opens that many connections at once and misbehaves on each. It says in a line of
//! JSON how many came about, holds them until its input ends, and says then how many were closed by the other side and
//! what they had been answered.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::process::Child;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tulle_tests::Arena;

/// Name of the role.
pub(crate) const ROLE: &str = "attack";
/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(4);
/// How long the test waits for a word.
const WORD: Duration = Duration::from_secs(60);

/// How to misbehave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Say nothing.
    Silent,
    /// Send a byte of a head now and then.
    Head,
    /// Stop within the body.
    Body,
    /// Send a byte of a body now and then.
    Drip,
    /// Ask for much and read nothing.
    Unread,
    /// The same over HTTP/2, for several answers whose windows are open.
    UnreadHttp2,
}

impl Way {
    const ALL: [(Self, &'static str); 6] = [
        (Self::Silent, "silent"),
        (Self::Head, "head"),
        (Self::Body, "body"),
        (Self::Drip, "drip"),
        (Self::Unread, "unread"),
        (Self::UnreadHttp2, "unread-http2"),
    ];

    fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }
}

/// How many connections came about.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Opened {
    pub(crate) connected: usize,
    pub(crate) refused: usize,
    /// Neither, within the time.
    pub(crate) pending: usize,
}

/// What became of them.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Ended {
    /// Closed or reset by the other side.
    pub(crate) closed: usize,
    /// Answers by status.
    pub(crate) answers: BTreeMap<String, usize>,
}

/// Runs the role: what is after its name.
pub(crate) fn run(arguments: &[String]) -> anyhow::Result<()> {
    let [way, target, number] = arguments else {
        bail!("{ROLE} WAY HOST:PORT NUMBER");
    };
    let way = Way::ALL.iter().find(|(_, name)| name == way);
    let way = way.context("no such way")?.0;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(attack(way, target, number.parse()?))
}

async fn attack(way: Way, target: &str, number: usize) -> anyhow::Result<()> {
    let address = lookup_host(target).await?.next().context("no such host")?;
    let (end, ending) = watch::channel(false);
    let (settle, mut settled) = watch::channel(Opened::default());
    let settle = Arc::new(settle);
    let mut connections = JoinSet::new();
    for _ in 0..number {
        connections.spawn(misbehave(way, address, settle.clone(), ending.clone()));
    }
    let all = |opened: &Opened| opened.connected + opened.refused + opened.pending == number;
    let opened = settled.wait_for(all).await?;
    say(&*opened)?;
    drop(opened);
    std::thread::spawn(move || {
        // Whoever started this ends it.
        let _ = std::io::stdin().read(&mut [0]);
        end.send_replace(true);
    });
    let mut ended = Ended::default();
    while let Some(outcome) = connections.join_next().await {
        let Some((closed, seen)) = outcome? else {
            continue;
        };
        ended.closed += usize::from(closed);
        let answer = String::from_utf8_lossy(&seen);
        if let Some(status) = answer
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3))
        {
            *ended.answers.entry(status.to_owned()).or_default() += 1;
        }
    }
    say(&ended)
}

fn say(what: &impl Serialize) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{}", serde_json::to_string(what)?)?;
    Ok(out.flush()?)
}

/// One connection: whether it was closed by the other side, and what was read.
async fn misbehave(
    way: Way,
    address: SocketAddr,
    settle: Arc<watch::Sender<Opened>>,
    mut ending: watch::Receiver<bool>,
) -> Option<(bool, Vec<u8>)> {
    let connected = timeout(CONNECT, connect(way, address)).await;
    settle.send_modify(|opened| match &connected {
        Ok(Ok(_)) => opened.connected += 1,
        Ok(Err(_)) => opened.refused += 1,
        Err(_) => opened.pending += 1,
    });
    let mut tcp = connected.ok()?.ok()?;
    let mut seen = Vec::new();
    let closed = tokio::select! {
        _ = ending.wait_for(|ended| *ended) => false,
        () = talk(way, &mut tcp, &mut seen) => true,
    };
    Some((closed, seen))
}

async fn connect(way: Way, address: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    if matches!(way, Way::Unread | Way::UnreadHttp2) {
        socket.set_recv_buffer_size(4096)?;
    }
    socket.connect(address).await
}

/// Misbehaves until the other side has had enough.
async fn talk(way: Way, tcp: &mut TcpStream, seen: &mut Vec<u8>) {
    let head = |line: &str, fields: &str| format!("{line} HTTP/1.1\r\nhost: web\r\n{fields}\r\n");
    let begin = match way {
        Way::Silent => Vec::new(),
        Way::Head => b"GET / HTTP/1.1\r\nhost: w".to_vec(),
        Way::Body => (head("POST /", "content-length: 1000\r\n") + "12345").into_bytes(),
        Way::Drip => head("POST /", "content-length: 1000\r\n").into_bytes(),
        Way::Unread => head("GET /?size=2000000", "").into_bytes(),
        Way::UnreadHttp2 => http2("/?size=2000000", 8),
    };
    if tcp.write_all(&begin).await.is_err() {
        return;
    }
    let (mut read, mut write) = tcp.split();
    let sending = async {
        match way {
            Way::Head | Way::Drip => {
                while write.write_all(b"e").await.is_ok() {
                    sleep(Duration::from_millis(200)).await;
                }
            }
            Way::Silent | Way::Body | Way::Unread | Way::UnreadHttp2 => {
                std::future::pending().await
            }
        }
    };
    let reading = async {
        match way {
            Way::Unread | Way::UnreadHttp2 => std::future::pending().await,
            Way::Silent | Way::Head | Way::Body | Way::Drip => {
                let _ = read.read_to_end(seen).await;
            }
        }
    };
    tokio::select! {
        () = sending => {}
        () = reading => {}
    }
}

/// An HTTP/2 client's preface with windows as large as they can be, and so many requests for a path.
fn http2(path: &str, requests: u8) -> Vec<u8> {
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        let length = (payload.len() as u32).to_be_bytes();
        let head = [
            length[1], length[2], length[3], kind, flags, 0, 0, 0, stream,
        ];
        [&head, payload].concat()
    };
    let text = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
    // SETTINGS_INITIAL_WINDOW_SIZE, and a WINDOW_UPDATE of the connection by what is left of it.
    let settings = frame(4, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]);
    let window = frame(8, 0, 0, &[0x7f, 0xff, 0, 0]);
    // GET, http, :authority and :path, whole and without a body.
    let head = [&[0x82, 0x86, 0x01][..], &text("web"), &[0x04], &text(path)].concat();
    let mut bytes = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &settings, &window].concat();
    for number in 0..requests {
        bytes.extend(frame(1, 5, 2 * number + 1, &head));
    }
    bytes
}

/// An attack that runs in a pod.
#[derive(Debug)]
pub(crate) struct Attack {
    child: Child,
    opened: Opened,
}

impl Attack {
    /// Begins it, and waits until every connection has come about, or has not.
    pub(crate) async fn begin(
        arena: &Arena<'_>,
        from: &str,
        way: Way,
        target: &str,
        number: usize,
    ) -> anyhow::Result<Self> {
        let number = number.to_string();
        let argv = ["tulle", ROLE, way.name(), target, &number];
        let mut child = arena.spawn(from, argv)?;
        let opened = word(&mut child).await?;
        Ok(Self {
            child,
            opened: serde_json::from_str(&opened)?,
        })
    }

    pub(crate) fn opened(&self) -> &Opened {
        &self.opened
    }

    /// Ends it, and says what became of the connections.
    pub(crate) async fn end(mut self) -> anyhow::Result<Ended> {
        drop(self.child.stdin.take());
        let ended = word(&mut self.child).await?;
        Ok(serde_json::from_str(&ended)?)
    }
}

/// The next line that it says.
async fn word(child: &mut Child) -> anyhow::Result<String> {
    let output = child.stdout.as_mut().context("the attack has no output")?;
    let reading = async {
        let mut line = Vec::new();
        loop {
            match output.read_u8().await? {
                b'\n' => return anyhow::Ok(String::from_utf8(line)?),
                byte => line.push(byte),
            }
        }
    };
    let line = timeout(WORD, reading)
        .await
        .context("the attack says nothing")??;
    ensure!(!line.is_empty(), "the attack said nothing");
    Ok(line)
}

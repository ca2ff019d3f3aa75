//! The access logs: who takes them in, and whether they have a line for each request.
//!
//! What a sidecar writes on its standard output goes into a pipe of one size for all, and one reader beside each, the same
//! program for all, takes it in: it counts the lines of the access log and passes on what else there is. A system whose
//! lines are not as many as what it was sent has done less than the others, and there is no figure of it.

use std::fs::{File, Permissions};
use std::io::{BufRead as _, BufReader, PipeWriter, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::fcntl::{FcntlArg, fcntl};
use tokio::time::{Instant, sleep};
use tulle_runtime::env::Env;
use tulle_runtime::names::variables;
use tulle_tests::thin;

use crate::bare::PEER;
use crate::load::{Kind, Sent};
use crate::systems::{CLIENT, System};

/// Name of the reader's role.
pub(crate) const ROLE: &str = "bench-log";
/// Bytes of every pipe: what ours asks for by itself.
const PIPE: i32 = 256 * 1024;
/// How long lines may take to be written, and between two looks. Ours holds them back for a tenth of a second, and Envoy
/// is told to.
const LATE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(20);
/// When no line has come for so long, none that is held back will.
const REST: Duration = Duration::from_millis(300);
/// After which time Envoy writes what it holds back, in milliseconds: as ours.
pub(crate) const HELD_BACK_MS: &str = "100";

/// What a line of the access log has in it, and what it must have too.
#[derive(Debug, Clone, Copy)]
struct Form {
    mark: &'static str,
    must: &'static str,
}

/// The access log of a system, if it has one.
fn form(system: System) -> Option<Form> {
    let (mark, must) = match system {
        System::Plain | System::Bare | System::Quiet => return None,
        System::Tulle | System::Envoy => ("\"response_flags\":", "{"),
        // It carried no request of somebody it does not know ...
        System::Linkerd => ("\"client.id\":", "\"client.id\":\"spiffe://"),
        // ... and no connection without a tunnel.
        System::Ztunnel => ("\"connection complete\"", "\"dst.hbone_addr\":\""),
    };
    Some(Form { mark, must })
}

/// How many lines the client's and the server's sidecar write of what was sent.
fn expected(system: System, kind: Kind, sent: Sent) -> [u64; 2] {
    match system {
        System::Plain | System::Bare | System::Quiet => [0, 0],
        System::Linkerd if kind.is_http() => [0, sent.requests],
        System::Linkerd => [0, 0],
        System::Tulle | System::Envoy if kind.is_http() => [sent.requests; 2],
        System::Tulle | System::Envoy | System::Ztunnel => [sent.connections; 2],
    }
}

/// Where the reader of a sidecar writes down what it has counted.
fn counted(system: System, account: &str) -> PathBuf {
    let name = format!("log-{}-{account}", system.namespace());
    thin::place().with_file_name(name)
}

/// Makes these places, where every reader may write.
pub(crate) fn install(system: System) -> anyhow::Result<()> {
    for account in [CLIENT, PEER] {
        let place = counted(system, account);
        std::fs::write(&place, Counted::default().to_bytes())?;
        std::fs::set_permissions(place, Permissions::from_mode(0o666))?;
    }
    Ok(())
}

/// Has a reader take in what this process, or what it becomes, writes on its standard output, which is returned.
pub(crate) fn read_by_another(system: System) -> anyhow::Result<Option<PipeWriter>> {
    let Some(form) = form(system) else {
        return Ok(None);
    };
    let env = Env::process();
    let account = env.text(variables::SERVICE_ACCOUNT).unwrap_or_default();
    let (out, into) = std::io::pipe()?;
    fcntl(&into, FcntlArg::F_SETPIPE_SZ(PIPE)).context("a pipe cannot be made larger")?;
    Command::new("/proc/self/exe")
        .arg0("tulle")
        .args([ROLE, form.mark, form.must])
        .arg(counted(system, account))
        .stdin(out)
        .spawn()
        .context("nobody reads the log")?;
    Ok(Some(into))
}

/// Runs the reader: `MARK MUST FILE`, until its input ends.
pub(crate) fn run(mark: &str, must: &str, file: &str) -> anyhow::Result<()> {
    let file = File::options().write(true).open(file);
    let file = file.context("there is no place for what is counted")?;
    let mut input = BufReader::with_capacity(64 * 1024, std::io::stdin().lock());
    let (mut counted, mut line) = (Counted::default(), Vec::new());
    let mut known = counted;
    loop {
        // Before it waits, everybody may know what it has.
        if input.buffer().is_empty() && known != counted {
            counted.pipe = pipe_size(std::io::stdin())?;
            file.write_all_at(&counted.to_bytes(), 0)?;
            known = counted;
        }
        line.clear();
        if input.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        // What is text is looked through fast.
        let text = std::str::from_utf8(&line).unwrap_or_default();
        let access = text.contains(mark);
        if access && text.contains(must) {
            counted.lines += 1;
            continue;
        }
        counted.wrong += u64::from(access);
        std::io::stdout().write_all(&line)?;
    }
}

fn pipe_size(pipe: impl AsFd) -> anyhow::Result<u64> {
    let size = fcntl(pipe, FcntlArg::F_GETPIPE_SZ).context("the log comes by no pipe")?;
    Ok(u64::try_from(size)?)
}

/// What a reader has counted.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Counted {
    lines: u64,
    /// Lines of the access log that lack what they must have.
    wrong: u64,
    /// Bytes of the pipe.
    pipe: u64,
}

impl Counted {
    const LENGTH: usize = 24;

    fn to_bytes(self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        let numbers = [self.lines, self.wrong, self.pipe];
        for (to, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            to.copy_from_slice(&number.to_ne_bytes());
        }
        bytes
    }

    /// Of a sidecar's reader.
    fn read(system: System, account: &str) -> anyhow::Result<Self> {
        let bytes = std::fs::read(counted(system, account)).context("nobody reads the log")?;
        let mut numbers = bytes.chunks_exact(8).map(|number| {
            let number = number.try_into().unwrap_or_default();
            u64::from_ne_bytes(number)
        });
        let mut next = || numbers.next().unwrap_or_default();
        Ok(Self {
            lines: next(),
            wrong: next(),
            pipe: next(),
        })
    }
}

/// How many lines there were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Log {
    system: System,
    counted: [Counted; 2],
}

impl Log {
    /// Of the client's sidecar and the server's.
    pub(crate) fn read(system: System) -> anyhow::Result<Option<Self>> {
        if form(system).is_none() {
            return Ok(None);
        }
        let of = |account| Counted::read(system, account);
        let counted = [of(CLIENT)?, of(PEER)?];
        Ok(Some(Self { system, counted }))
    }

    /// The same once no more lines come: after a load that was given up nobody has counted them.
    pub(crate) async fn at_rest(system: System) -> anyhow::Result<Option<Self>> {
        let until = Instant::now() + LATE;
        let mut log = Self::read(system)?;
        while log.is_some() {
            sleep(REST).await;
            let now = Self::read(system)?;
            if now == log {
                break;
            }
            ensure!(
                Instant::now() < until,
                "lines of an earlier load still come into its access log"
            );
            log = now;
        }
        Ok(log)
    }

    /// Makes sure that there is a line for everything that was sent since then, as soon as they are all written.
    pub(crate) async fn check(&self, kind: Kind, sent: Sent) -> anyhow::Result<()> {
        let expected = expected(self.system, kind, sent);
        let until = Instant::now() + LATE;
        loop {
            let now = Self::read(self.system)?.context("no log")?;
            let lines = |at: usize| now.counted[at].lines - self.counted[at].lines;
            let lines = [lines(0), lines(1)];
            for counted in now.counted {
                ensure!(
                    counted.wrong == 0,
                    "{} lines of its access log lack what they must have",
                    counted.wrong
                );
                ensure!(
                    counted.lines == 0 || counted.pipe == u64::from(PIPE.unsigned_abs()),
                    "its access log goes through a pipe of {} bytes",
                    counted.pipe
                );
            }
            let there = match self.system {
                // It lets some of its lines go.
                System::Linkerd => lines[1] > 0 || expected[1] == 0,
                _ => lines == expected,
            };
            if there {
                return Ok(());
            }
            ensure!(
                Instant::now() < until,
                "its access log has {} and {} lines (client, server) for {} and {}",
                lines[0],
                lines[1],
                expected[0],
                expected[1]
            );
            sleep(LOOK).await;
        }
    }
}

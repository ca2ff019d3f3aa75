//! A running sandbox, from another terminal: a unix socket that only its user can reach.
//!
//! One request for each connection, a line of JSON, with the caller's standard streams beside it; one line of answer.

use std::fs::{self, DirBuilder};
use std::io::{self, BufRead as _, BufReader, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;

use tulle_runtime::causes::chain;

use crate::node::outer_id;
use crate::sandbox::status_code;
use crate::{Error, ObjectKey, Sandbox};

/// A longer request is none.
const REQUEST: usize = 64 << 10;

/// What to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Run a program in a container, with the caller's standard streams.
    Exec {
        /// `namespace/name`.
        pod: String,
        /// The first of the app unless named.
        container: Option<String>,
        /// Program and arguments.
        argv: Vec<String>,
    },
    /// List the pods.
    Status,
    /// Write a container's output to the caller's standard output.
    Logs {
        /// `namespace/name`.
        pod: String,
        /// The first of the app unless named.
        container: Option<String>,
    },
    /// End the sandbox.
    Down,
}

/// One pod in the answer to [`Request::Status`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodLine {
    /// `namespace/name`.
    pub pod: String,
    /// `2/2`: containers that are ready.
    pub ready: String,
    /// Phase, or why it waits.
    pub status: String,
    /// Restarts of all its containers.
    pub restarts: u32,
    /// Its first address.
    pub ip: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answer {
    Ended(i32),
    Pods(Vec<PodLine>),
    Failed(String),
}

/// Where the sockets are.
fn place() -> PathBuf {
    let uid = nix::unistd::geteuid();
    let runtime = std::env::var_os("XDG_RUNTIME_DIR")
        .map(PathBuf::from)
        .filter(|path| path.is_dir());
    match runtime {
        Some(runtime) => runtime.join("tulle-sandbox"),
        // Inside the node the user may be called root; the files say who it is outside.
        None => PathBuf::from(format!(
            "/tmp/tulle-sandbox-{}",
            outer_id(uid.as_raw()).unwrap_or(uid.as_raw())
        )),
    }
}

/// Makes a directory that belongs to the user alone, or sees to it that it is one.
fn directory() -> Result<PathBuf, Error> {
    let path = place();
    let what = || format!("use {} for the sandbox's socket", path.display());
    match DirBuilder::new().mode(0o700).create(&path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(Error::io(what())(error));
        }
        _ => {}
    }
    let metadata = fs::symlink_metadata(&path).map_err(Error::io(what()))?;
    let uid = nix::unistd::geteuid().as_raw();
    if !metadata.is_dir() || metadata.uid() != uid || metadata.mode() & 0o077 != 0 {
        return Err(Error::io(what())(io::Error::other(
            "it is not a directory of this user alone: remove it",
        )));
    }
    Ok(path)
}

/// Sockets that somebody listens on, with the ids of their sandboxes; those that a killed one left behind are removed.
fn live(directory: &Path) -> Result<Vec<(u32, StdStream)>, Error> {
    let what = || format!("read {}", directory.display());
    let entries = fs::read_dir(directory).map_err(Error::io(what()))?;
    let mut live = Vec::new();
    for path in entries.flatten().map(|entry| entry.path()) {
        match StdStream::connect(&path) {
            Ok(stream) => {
                let id = path
                    .file_stem()
                    .and_then(|stem| stem.to_str()?.parse().ok());
                live.extend(id.map(|id| (id, stream)));
            }
            // Removed by somebody else is removed.
            Err(_) => drop(fs::remove_file(&path)),
        }
    }
    live.sort_by_key(|(id, _)| *id);
    Ok(live)
}

/// Ids of this user's running sandboxes but the one of that id.
#[must_use]
pub fn others(id: u32) -> Vec<u32> {
    if !place().exists() {
        return Vec::new();
    }
    let live = directory().and_then(|directory| live(&directory));
    let ids = live.into_iter().flatten().map(|(id, _)| id);
    ids.filter(|other| *other != id).collect()
}

/// An id with the command that its process was started with.
fn described(id: u32) -> String {
    let command = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
    let words: Vec<_> = command
        .split(|byte| *byte == 0)
        .filter(|word| !word.is_empty())
        .map(|word| String::from_utf8_lossy(word).escape_debug().to_string())
        .collect();
    if words.is_empty() {
        id.to_string()
    } else {
        format!("{id} ({})", words.join(" "))
    }
}

impl Sandbox {
    /// Answers requests from other terminals; resolves when one of them asks for the end.
    pub async fn serve(&self) -> Result<(), Error> {
        let (path, listener) = self.listen()?;
        let what = || format!("listen on {}", path.display());
        let _remove = RemoveOnDrop(path.clone());
        let down = std::sync::Arc::new(Notify::new());
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let (stream, _) = accepted.map_err(Error::io(what()))?;
                    let (sandbox, down) = (self.clone(), down.clone());
                    self.tasks().spawn_connection("remote", async move {
                        if let Err(error) = sandbox.converse(stream, &down).await {
                            tracing::debug!(%error, "a request from another terminal broke off");
                        }
                    });
                }
                () = down.notified() => return Ok(()),
            }
        }
    }

    fn listen(&self) -> Result<(PathBuf, UnixListener), Error> {
        let mut again = true;
        loop {
            let directory = directory()?;
            drop(live(&directory)?);
            let path = directory.join(format!("{}.sock", self.node().launcher()));
            match UnixListener::bind(&path) {
                Ok(listener) => return Ok((path, listener)),
                // Another sandbox that ended took the directory along, just now.
                Err(error) if error.kind() == io::ErrorKind::NotFound && again => again = false,
                Err(error) => {
                    return Err(Error::io(format!("listen on {}", path.display()))(error));
                }
            }
        }
    }

    async fn converse(&self, mut stream: UnixStream, down: &Notify) -> io::Result<()> {
        let (request, streams) = receive(&mut stream).await?;
        let answer = match serde_json::from_slice(&request) {
            Ok(request) => {
                let work = self.perform(request, streams, down);
                let mut end = [0];
                tokio::select! {
                    answer = work => answer.unwrap_or_else(|error| Answer::Failed(chain(&error))),
                    // The caller is gone, and what it started goes too.
                    _ = stream.read(&mut end) => return Ok(()),
                }
            }
            Err(error) => Answer::Failed(format!("the request is not understood: {error}")),
        };
        let mut line = serde_json::to_vec(&answer)?;
        line.push(b'\n');
        stream.write_all(&line).await
    }

    async fn perform(
        &self,
        request: Request,
        streams: Vec<OwnedFd>,
        down: &Notify,
    ) -> Result<Answer, Error> {
        let parse = |pod: &str| {
            pod.parse::<ObjectKey>().map_err(|_| Error::Missing {
                kind: "pod",
                name: pod.to_owned(),
            })
        };
        let Ok([input, output, errors]) = <[OwnedFd; 3]>::try_from(streams) else {
            return Ok(Answer::Failed(
                "the request came without standard streams".to_owned(),
            ));
        };
        match request {
            Request::Status => Ok(Answer::Pods(self.pods().iter().map(PodLine::new).collect())),
            Request::Down => {
                down.notify_one();
                Ok(Answer::Ended(0))
            }
            Request::Logs { pod, container } => {
                let text = self.logs(&parse(&pod)?, container.as_deref())?;
                let write = tokio::task::spawn_blocking(move || {
                    io::Write::write_all(&mut fs::File::from(output), &text)
                });
                let written = write
                    .await
                    .unwrap_or_else(|error| Err(io::Error::other(error)));
                written
                    .map(|()| Answer::Ended(0))
                    .map_err(Error::io("write the log"))
            }
            Request::Exec {
                pod,
                container,
                argv,
            } => {
                let mut command = self.command(&parse(&pod)?, container.as_deref(), argv)?;
                command
                    .stdin(Stdio::from(input))
                    .stdout(Stdio::from(output))
                    .stderr(Stdio::from(errors));
                let status = command.kill_on_drop(true).status().await;
                status
                    .map(status_code)
                    .map(Answer::Ended)
                    .map_err(Error::io("run a program"))
            }
        }
    }
}

struct RemoveOnDrop(PathBuf);

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        // A socket that nobody listens on is passed over and harms nobody.
        let _ = fs::remove_file(&self.0);
        // And the directory, unless another sandbox of this user has a socket in it.
        let _ = self.0.parent().map(fs::remove_dir);
    }
}

impl PodLine {
    fn new(pod: &crate::PodView) -> Self {
        let lasting = pod.containers.iter().filter(|container| !container.init);
        let ready = lasting.clone().filter(|container| container.ready).count();
        let waits = pod
            .containers
            .iter()
            .find(|container| container.message.is_some());
        let status = if pod.terminating {
            "Terminating".to_owned()
        } else {
            pod.waiting
                .clone()
                .or_else(|| waits.map(|container| container.state.clone()))
                .unwrap_or(pod.phase.clone())
        };
        Self {
            pod: pod.key.to_string(),
            ready: format!("{ready}/{}", lasting.count()),
            status,
            restarts: pod
                .containers
                .iter()
                .map(|container| container.restarts)
                .sum(),
            ip: pod.ips.v4.to_string(),
        }
    }
}

/// The first message, with the descriptors that came with it.
async fn receive(stream: &mut UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut request = vec![0; REQUEST];
    let mut streams = Vec::new();
    let length = stream
        .async_io(Interest::READABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let parts = &mut [IoSliceMut::new(&mut request)];
            let received = recvmsg(stream.as_fd(), parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                    streams.extend(descriptors);
                }
            }
            Ok(received.bytes)
        })
        .await?;
    request.truncate(length);
    while request.last() != Some(&b'\n') && request.len() < REQUEST {
        if stream.read_buf(&mut request).await? == 0 {
            break;
        }
    }
    Ok((request, streams))
}

/// The way to a running sandbox of this user.
#[derive(Debug)]
pub struct Client(StdStream);

impl Client {
    /// Connects to the one of that id, or to the only one there is.
    pub fn connect(id: Option<u32>) -> Result<Self, Error> {
        let live = if place().exists() {
            live(&directory()?)?
        } else {
            Vec::new()
        };
        let running: Vec<_> = live.iter().map(|(id, _)| *id).collect();
        let mut meant = live
            .into_iter()
            .filter(|(other, _)| id.is_none_or(|id| id == *other));
        let described = || running.iter().map(|id| described(*id)).collect::<Vec<_>>();
        match (meant.next(), meant.next(), id) {
            (Some((_, stream)), None, _) => Ok(Self(stream)),
            (Some(_), Some(_), _) => Err(Error::Several {
                running: described(),
            }),
            (None, _, Some(id)) if !running.is_empty() => Err(Error::NotThatOne {
                id,
                running: described(),
            }),
            (None, _, _) => Err(Error::Missing {
                kind: "running sandbox",
                name: "of this user".to_owned(),
            }),
        }
    }

    /// Has the program run or the log written, with this process's standard streams, and returns the exit status.
    pub fn run(self, request: &Request) -> Result<i32, Error> {
        match self.ask(request)? {
            Answer::Ended(status) => Ok(status),
            Answer::Pods(_) => Ok(0),
            Answer::Failed(problem) => Err(Error::Answered(problem)),
        }
    }

    /// The pods.
    pub fn status(self) -> Result<Vec<PodLine>, Error> {
        match self.ask(&Request::Status)? {
            Answer::Pods(pods) => Ok(pods),
            Answer::Failed(problem) => Err(Error::Answered(problem)),
            Answer::Ended(_) => Ok(Vec::new()),
        }
    }

    fn ask(self, request: &Request) -> Result<Answer, Error> {
        let what = || "talk to the sandbox";
        let mut line =
            serde_json::to_vec(request).map_err(|error| Error::io(what())(error.into()))?;
        line.push(b'\n');
        let (input, output, errors) = (io::stdin(), io::stdout(), io::stderr());
        let streams = [input.as_fd(), output.as_fd(), errors.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&streams));
        let sent = sendmsg(
            self.0.as_fd(),
            &[IoSlice::new(&line)],
            &mut control,
            SendFlags::empty(),
        );
        let sent = sent.map_err(|errno| Error::io(what())(errno.into()))?;
        io::Write::write_all(&mut &self.0, &line[sent..]).map_err(Error::io(what()))?;
        let mut answer = String::new();
        BufReader::new(&self.0)
            .read_line(&mut answer)
            .map_err(Error::io(what()))?;
        if answer.is_empty() {
            return Err(Error::io(what())(io::Error::other(
                "it ended before it answered",
            )));
        }
        serde_json::from_str(&answer).map_err(|error| Error::io(what())(error.into()))
    }
}
